"""The renderer: OpenGL 3.3 without a window (moderngl over EGL), on Mesa's software rasteriser or a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import moderngl
import numpy as np
from tools.synthheads import glasses, shaders, texture
from tools.synthheads.model import HeadModel
from tools.synthheads.pack import PARTS
from tools.synthheads.shaders import SHADOW
from tools.synthheads.texture import Look

from latentsync.errors import DeviceError

TEXTURE = 1024  # texels of a tile's side
EYE_CENTRE = (3.116, 3.602, 7.98)
PIVOT = (0.0, -8.0, -1.0)  # about which the head turns
MOUTH = (0.0, -3.4, 11.2)
LIGHTS = 4
OVERSAMPLING = 1.5  # rendered pixels per pixel of the frame
SKULL = 22221, 23020, 23791, 24590  # vertices of the eyes' outer shells, first and last of each: clear in life, left out here
LONG_STEPS, LONG_ROWS = 90, 44  # grid of the long hair: around, and down
TORSO, LONG_HAIR, FRAME = 10, 11, 12  # numbers of the parts that the kit does not have


def perspective(fov: float, near: float, far: float) -> np.ndarray:
    """(4, 4) projection; `fov` in degrees, of the whole height."""
    f = 1 / np.tan(np.radians(fov) / 2)
    depth = [(far + near) / (near - far), 2 * far * near / (near - far)]
    return np.array([[f, 0, 0, 0], [0, f, 0, 0], [0, 0, *depth], [0, 0, -1, 0]], np.float32)


def look_at(eye: np.ndarray, at: np.ndarray, up: Sequence[float] = (0, 1, 0)) -> np.ndarray:
    """(4, 4) world -> camera at `eye` looking to `at`."""
    f = np.asarray(at, np.float64) - eye
    f /= np.linalg.norm(f)
    s = np.cross(f, up)
    s /= np.linalg.norm(s)
    out = np.eye(4)
    out[0, :3], out[1, :3], out[2, :3] = s, np.cross(s, f), -f
    out[:3, 3] = -out[:3, :3] @ eye
    return out.astype(np.float32)


def neck_weight(p: np.ndarray) -> np.ndarray:
    """(n, 3) rest positions -> (n,) how far each goes with the head, 0 at the shoulders."""
    return texture.soft(p[:, 1] + 0.25 * p[:, 2], -14.0, -7.5).astype(np.float32)


def crooked(model: HeadModel, verts: np.ndarray, look: Look, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(v, 3) identity -> with teeth of its own: sizes, gaps, turns; and (v,) a shade for each tooth, -1..0.5 (-1: as all)."""
    verts, shade = verts.copy(), np.full(len(verts), -1.0, np.float32)
    tooth = model.teeth()
    spread = look["tooth_spread"]
    used = tooth >= 0
    rows = verts[used, 1]
    middle = (rows.min() + rows.max()) / 2
    for k in range(int(tooth.max()) + 1):
        mine = tooth == k
        p = verts[mine]
        c = p.mean(0)
        upper = c[1] > middle
        root = p[:, 1].max() if upper else p[:, 1].min()
        angle = 0.16 * spread * rng.normal()
        turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
        q = (p - c) * [1 - look["tooth_gap"], 1, 1 - look["tooth_gap"] / 2] @ turn.T + c
        q[:, 1] = root + (p[:, 1] - root) * look["tooth_size"] * (1 + 0.06 * spread * rng.normal())
        q += 0.04 * spread * rng.standard_normal(3)
        if upper:
            q[:, 0] += np.sign(c[0]) * look["front_gap"] / 2
        verts[mine] = q
        shade[mine] = -1 + np.clip((0.04 + 0.10 * spread) * rng.normal(), -0.3, 0.3)
    return verts, shade


@dataclass
class Light:
    """Lamps, exposure and the room of one clip. Directions are unit vectors towards the lamp, colours linear."""

    key: np.ndarray  # (3,)
    key_colour: np.ndarray
    ambient: np.ndarray
    fills: list[np.ndarray]
    fill_colours: list[np.ndarray]
    exposure: float
    saturation: float
    room: np.ndarray  # (512, 512, 3) uint8
    room_place: tuple[float, float, float, float]
    room_gain: float


def sample_light(rng: np.random.Generator, skin: np.ndarray, more: np.random.Generator | None) -> Light:
    """Random light, exposed for a skin (3,) sRGB; `more` adds what only later seeds have: hard, flat and coloured light, faulty exposure."""
    u = rng.uniform

    def temperature(k: float) -> np.ndarray:
        t = rng.normal(0, k)
        return np.array([1 + t, 1, 1 - t])

    side, height = rng.choice([-1, 1]) * u(5, 75), u(5, 55)
    a, e = np.radians(side), np.radians(height)
    key = np.array([np.sin(a) * np.cos(e), np.sin(e), np.cos(a) * np.cos(e)])
    strength = u(0.3, 2.2)
    key_colour = strength * temperature(0.10)
    ambient = u(0.12, 0.45)
    ambient_colour = ambient * temperature(0.06)
    fills, colours = [], []
    for i in range(LIGHTS):
        d = rng.standard_normal(3) + np.array([0, 0.5, 0.3])
        if i == 0:
            d = np.array([-np.sign(side) * u(0.3, 1), u(-0.2, 0.6), 1])
        if i == 3:
            d = np.array([u(-1, 1), 0.3, -0.8])
        fills.append(d / np.linalg.norm(d))
        colours.append(u(0, 0.6) * temperature(0.12))
    fault = 1.0
    if more is not None:
        kind = more.random()
        if kind < 0.22:  # one hard lamp
            strength, ambient = strength * 1.5, ambient * 0.5
            key_colour, ambient_colour, colours = key_colour * 1.5, ambient_colour * 0.5, [c * 0.45 for c in colours]
        elif kind < 0.42:  # an overcast day
            strength, ambient = strength * 0.25, ambient * 1.6
            key_colour, ambient_colour = key_colour * 0.25, ambient_colour * 1.6
        elif kind < 0.62:  # screens and coloured lamps
            for i in more.choice(LIGHTS, 2, replace=False):
                colours[i] = colours[i] * more.uniform(0.35, 1.5, 3) * 1.6
        fault = float(np.clip(np.exp(more.normal(0, 0.22)), 0.6, 1.55))
    luminance = 0.55 * strength + 1.0 * ambient + 0.45 * float(np.sum(np.mean(colours, 1)))
    exposure = float(np.clip(u(0.16, 0.30) / (luminance * (float(np.mean(texture.lin(skin))) * 0.75 + 0.09)), 0.25, 4)) * fault
    saturation = u(0.74, 1.0)
    room = texture.background(rng)
    return Light(
        key,
        key_colour,
        ambient_colour,
        fills,
        [np.clip(c, 0, 3) for c in colours],
        exposure,
        saturation,
        room,
        (u(0, 0.2), u(0, 0.2), 0.75, 0.75),
        float(u(0.6, 1.05)),
    )


def _context() -> Any:
    try:
        options: dict[str, Any] = {"backend": "egl"}
        return moderngl.create_context(standalone=True, **options)
    except Exception as e:
        raise DeviceError(f"no OpenGL 3.3 without a window ({e}); run: apt-get install libegl1 libgl1-mesa-dri") from e


class Renderer:
    """One head in one light at a time; frames of size x size."""

    def __init__(self, model: HeadModel, size: int, cache: Path | None = None) -> None:
        """`cache` is where the baked ambient occlusion is kept (2 s to bake). DeviceError where there is no OpenGL."""
        self.model, self.size = model, size
        self._inner = round(size * OVERSAMPLING)
        self._ctx = ctx = _context()
        self.name: str = ctx.info["GL_RENDERER"]
        self._programs = [ctx.program(shaders.VERTEX, shaders.fragment(kind)) for kind in range(shaders.KINDS)]
        self._depth_program = ctx.program(shaders.DEPTH_VERTEX, shaders.DEPTH_FRAGMENT)
        self._room_program = ctx.program(shaders.ROOM_VERTEX, shaders.ROOM_FRAGMENT)
        self._target = ctx.framebuffer([ctx.texture((self._inner,) * 2, 4)], ctx.depth_renderbuffer((self._inner,) * 2))
        self._shadow_map = ctx.depth_texture((SHADOW, SHADOW))
        self._shadow_map.compare_func = ""
        self._shadow_map.repeat_x = self._shadow_map.repeat_y = False
        self._shadow_target = ctx.framebuffer(depth_attachment=self._shadow_map)
        self._skin = ctx.texture_array((TEXTURE, TEXTURE, 2), 4)
        self._room = ctx.texture((512, 512), 3)
        self._static()
        self._occlusion = self._baked(cache)
        self._unfolded = self._unfold()

    def close(self) -> None:
        self._ctx.release()

    # What all heads share

    def _static(self) -> None:
        m, ctx = self.model, self._ctx
        self._count = len(m.src)  # of render vertices of the mesh; those of torso, long hair and glasses come after
        self._rest = m.v0[m.src]
        self._part = m.part_v[m.src]
        tile = np.floor(m.uv[:, 0] - 1e-5).clip(0)
        self._uv = np.c_[m.uv[:, 0] - tile, m.uv[:, 1], tile].astype(np.float32)
        lash = self._part == 9
        self._uv[lash, 0] = m.uv[lash, 0] * 2 % 1.0
        a, b, c, d = SKULL
        shell = ((m.tri >= a) & (m.tri <= b) | (m.tri >= c) & (m.tri <= d)).any(1)
        self._opaque = m.rtri[(m.tri_part >= 0) & (m.tri_part <= 6) & ~shell]
        torso = self._make_torso()
        self._long_at = self._count + len(self._torso)
        self._glasses_at = self._long_at + LONG_STEPS * LONG_ROWS
        self._total = self._glasses_at + glasses.VERTICES
        s, t = np.meshgrid(np.arange(LONG_STEPS - 1), np.arange(LONG_ROWS - 1), indexing="ij")
        k = self._long_at + (s * LONG_ROWS + t).ravel()
        long = np.c_[k, k + LONG_ROWS, k + 1, k + 1, k + LONG_ROWS, k + LONG_ROWS + 1].reshape(-1, 3)
        self._moving = ctx.buffer(reserve=self._total * 24, dynamic=True)
        self._fixed = ctx.buffer(reserve=self._total * 40)
        quad = np.array([-1, -1, 1, -1, -1, 1, 1, 1], np.float32)
        self._room_array = ctx.vertex_array(self._room_program, [(ctx.buffer(quad.tobytes()), "2f", "p")])

        def indexes(a: np.ndarray) -> Any:
            return ctx.buffer(np.ascontiguousarray(a, np.int32).tobytes())

        def array(kind: int, order: Any) -> Any:
            program = self._programs[kind]
            moving = [("3f", "in_pos"), ("3f", "in_nrm")]
            fixed = [("3f", "in_rest"), ("3f", "in_uv"), ("4f", "in_misc")]
            layout = []
            for buffer, fields in ((self._moving, moving), (self._fixed, fixed)):
                form = " ".join(f if name in program else f"{4 * int(f[0])}x" for f, name in fields)  # what is not used is skipped
                layout.append((buffer, form, *[name for _, name in fields if name in program]))
            return ctx.vertex_array(program, layout, order)

        def depth_array(order: Any) -> Any:
            return ctx.vertex_array(self._depth_program, [(self._moving, "3f 12x", "in_pos"), (self._fixed, "24x 4f", "in_misc")], order)

        main = indexes(np.r_[self._opaque, torso])
        frame = indexes(self._glasses_at + glasses.frame_triangles())
        self._hair_order = ctx.buffer(reserve=4 * 3 * 30000)
        self._main, self._main_depth = array(0, main), depth_array(main)
        self._frame, self._frame_depth = array(0, frame), depth_array(frame)
        self._hair = array(1, self._hair_order)
        self._long = array(2, indexes(long))
        self._lashes = array(3, indexes(m.rtri[m.tri_part == 9]))
        self._lenses = array(4, indexes(self._glasses_at + glasses.lens_triangles()))

    def _make_torso(self) -> np.ndarray:
        """Shoulders below the rim of the bust: vertices are kept, triangles (t, 3) returned."""
        m = self.model
        t = m.tri[(m.tri_part == 0) | (m.tri_part == 1)]
        edges = np.r_[t[:, [0, 1]], t[:, [1, 2]], t[:, [2, 0]]]
        _, inverse, count = np.unique(np.sort(edges, 1), axis=0, return_inverse=True, return_counts=True)
        border = edges[count[inverse.ravel()] == 1]
        border = border[(m.v0[border][:, :, 1] < -11).all(1)]
        self._rim = np.unique(border)
        place = {int(k): i for i, k in enumerate(self._rim)}
        p = m.v0[self._rim]
        out = p - [0, 0, -2.5]
        out[:, 1] = 0
        out /= np.linalg.norm(out, axis=1, keepdims=True)
        wide = np.array([1.35, 1, 0.55])
        rings = [(0, 0.0), (2.5, -0.5), (6, -2.0), (9, -5.5), (10, -12), (10, -30), (10, -90)]  # how far out, how far down
        self._torso = np.concatenate([p + out * wide * o + [0, y, 0] for o, y in rings]).astype(np.float32)
        normals = [np.where(np.array([[k < 2]]), [0, 1, 0.3], out + np.array([0, 0.9 - 0.25 * min(k, 5), 0])) for k in range(len(rings))]
        self._torso_normals = np.concatenate([x / np.linalg.norm(x, axis=1, keepdims=True) for x in normals]).astype(np.float32)
        quads, n = [], len(self._rim)
        for r in range(len(rings) - 1):
            for i, j in ((place[int(i)], place[int(j)]) for i, j in border):
                a0, a1, b0, b1 = r * n + i, r * n + j, (r + 1) * n + i, (r + 1) * n + j
                quads += [[a0, b0, a1], [a1, b0, b1]]
        return np.array(quads, np.int32) + self._count

    def _baked(self, cache: Path | None) -> np.ndarray:
        """(render vertices,) ambient occlusion of the neutral head, 1 = open: the share of 160 lamps that reach a vertex."""
        if cache is not None and cache.is_file():
            kept = np.load(cache)
            if len(kept) == self._count:
                return kept
        rng = np.random.default_rng(0)
        normals = self.model.normals(self.model.v0)[self.model.src]
        self._write_fixed(np.ones(self._count, np.float32), np.zeros(self._count, np.float32))
        place = np.zeros((self._total, 6), np.float32)
        place[: self._count, :3] = self._rest
        place[self._count : self._long_at, :3] = self._torso
        self._moving.write(place.tobytes())
        self._depth_program["uHead"].value = tuple(np.eye(3).ravel())
        seen, weights = np.zeros(self._count), np.zeros(self._count)
        for _ in range(160):
            d = rng.standard_normal(3)
            d /= np.linalg.norm(d)
            matrix = self._shadow_matrix(d)
            self._depth(matrix, False)
            depth = np.frombuffer(self._shadow_map.read(), np.float32).reshape(SHADOW, SHADOW)
            q = np.c_[self._rest + normals * 0.15, np.ones(self._count)] @ matrix.T
            at = ((q[:, :2] * 0.5 + 0.5) * SHADOW).astype(int).clip(0, SHADOW - 1)
            w = np.clip(normals @ d, 0, None)
            seen += w * (depth[at[:, 1], at[:, 0]] > q[:, 2] * 0.5 + 0.5 - 0.004)
            weights += w
        baked = np.clip(seen / np.maximum(weights, 1e-6) * 1.08, 0.05, 1).astype(np.float32)
        if cache is not None:
            scratch = cache.with_name(f".{cache.stem}.{id(self):x}.npy")
            with suppress(OSError):  # the folder may be read-only: it is then baked each time
                np.save(scratch, baked)
                scratch.replace(cache)
        return baked

    def _unfold(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """For both texture tiles: (n, n, 3) rest position of each texel, (n, n) whether it has one."""
        ctx = self._ctx
        program = ctx.program(shaders.UNFOLD_VERTEX, shaders.UNFOLD_FRAGMENT)
        image = ctx.texture((TEXTURE, TEXTURE), 4, dtype="f4")
        target = ctx.framebuffer([image])
        skin = self._opaque[(self._part[self._opaque] <= 1).all(1)]
        vertices = ctx.buffer(np.c_[self._rest, self._uv].astype(np.float32).tobytes())
        array = ctx.vertex_array(program, [(vertices, "3f 3f", "in_rest", "in_uv")], ctx.buffer(np.ascontiguousarray(skin).tobytes()))
        out = []
        for tile in (0, 1):
            target.use()
            ctx.viewport = (0, 0, TEXTURE, TEXTURE)
            target.clear()
            ctx.disable(moderngl.DEPTH_TEST | moderngl.CULL_FACE)
            program["uTile"].value = tile
            array.render()
            a = np.frombuffer(image.read(), np.float32).reshape(TEXTURE, TEXTURE, 4)[::-1]
            out.append((a[..., :3].copy(), a[..., 3] > 0.5))
        return out

    def _write_fixed(self, occlusion: np.ndarray, hair: np.ndarray, long: tuple[np.ndarray, np.ndarray] | None = None) -> None:
        """What does not change from frame to frame: rest, texture place, part, occlusion, share of the head's motion, hair."""
        s = np.zeros((self._total, 10), np.float32)
        mesh, torso = slice(0, self._count), slice(self._count, self._long_at)
        s[mesh, :3], s[mesh, 3:6], s[mesh, 6], s[mesh, 7] = self._rest, self._uv, self._part, occlusion
        s[mesh, 8], s[mesh, 9] = neck_weight(self._rest), hair
        s[torso, :3], s[torso, 6], s[torso, 7] = self._torso, TORSO, 0.9
        if long is not None:
            position, place = long
            k = slice(self._long_at, self._glasses_at)
            s[k, :3], s[k, 3:6], s[k, 6], s[k, 7] = position, place, LONG_HAIR, 0.9
            s[k, 8] = neck_weight(position * [1, 1, 0] + [0, 4, 0])
        s[self._glasses_at :, 6], s[self._glasses_at :, 7], s[self._glasses_at :, 8] = FRAME, 0.9, 1
        self._fixed.write(s.tobytes())

    def _set(self, name: str, value: Any) -> None:
        for program in self._programs:
            if name in program:
                uniform = program[name]
                uniform.value = value[: uniform.array_length] if isinstance(value, list) else value  # unused ends of arrays are compiled away

    def _set_bytes(self, name: str, data: bytes) -> None:
        for program in self._programs:
            if name in program:
                program[name].write(data)

    # Once per clip

    def set_identity(
        self, verts: np.ndarray, look: Look, rng: np.random.Generator, more: np.random.Generator | None = None, shade: np.ndarray | None = None
    ) -> None:
        """The head (v, 3) at rest and its look. `shade` (v,) is that of the teeth, from `crooked`."""
        m = self.model
        self._look = look
        painted = [texture.paint_skin(p, valid, tile, m, look, rng, more) for tile, (p, valid) in enumerate(self._unfolded)]
        self._skin.write(np.stack([x[::-1] for x in painted]).tobytes())
        self._skin.build_mipmaps()
        self._skin.filter = (moderngl.LINEAR_MIPMAP_LINEAR, moderngl.LINEAR)
        hair = texture.hair_mask(self._rest, look).astype(np.float32)
        hair[self._part > 1] = -1
        t = self._opaque[(hair[self._opaque] > -0.2).any(1) & (self._part[self._opaque] <= 1).all(1)]
        c = self._rest[t].mean(1)
        t = t[~((np.abs(c[:, 0]) > 7.6) & (c[:, 1] < 5.5) & (c[:, 2] > -2.2))]  # ears carry no hair
        self._hair_count = t.size
        self._hair_order.write(np.ascontiguousarray(t, np.int32).tobytes())
        if shade is not None:
            teeth = self._part == 5
            hair[teeth] = shade[m.src][teeth]
        hair[m.tongue[m.src]] = 1.0
        position, normal, place = self._long_hair(verts, look, rng)
        self._write_fixed(self._occlusion, hair, (position, place))
        moved = verts[self._rim] - m.v0[self._rim]
        k = len(self._torso) // len(self._rim)
        still = [np.c_[self._torso + np.tile(moved, (k, 1)), self._torso_normals], np.c_[position, normal]]
        worn = look["glasses"]
        if worn:
            fitted = glasses.fit(verts, slice(*PARTS["face"]), worn)
            still.append(np.c_[fitted.position, fitted.normal])
            self._set("uFrame", tuple(float(x) for x in texture.lin(np.clip(worn["colour"], 0, 1))))
            self._set("uLens", (worn["tint"], worn["mirror"]))
        else:
            still.append(np.zeros((glasses.VERTICES, 6)))
        self._still = np.concatenate(still).astype(np.float32).tobytes()
        colours = {"uIris": "iris", "uTeeth": "teeth", "uGum": "gum", "uTongue": "tongue", "uShirt": "shirt"}
        for name, key in colours.items():
            self._set(name, tuple(float(x) for x in look[key]))
        self._set("uHairC", tuple(float(x) for x in texture.lin(look["hair_rgb"])))
        self._set("uEyeC", EYE_CENTRE)
        self._set("uMouth", MOUTH)
        self._set("uStripe", look["stripes"])
        self._set("uOil", look["oil"])
        self._set("uSSS", 1.0)
        self._set("uLash", look["lash"])
        self._layers = 5 if look["long"] else 12

    def _long_hair(self, verts: np.ndarray, look: Look, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A hull that falls from the crown, open in front of the face: positions, normals, and strand, height, edge; each (n, 3)."""
        s = np.linspace(0, 1, LONG_STEPS)[:, None]
        t = np.linspace(0, 1, LONG_ROWS)[None]
        top, bottom = 14.9 + 0.4 * look["hair_len"], look["long_len"]
        y = top - (top - bottom) * (0.12 * t + 0.88 * t**1.35)
        part = float(rng.uniform(-25, 25))
        opening = np.interp(y, [-30, 2, 6, 9, 10.9, 12.2, 20], [80, 76, 68, 52, 30, 0, 0])
        az = np.radians(opening + s * (360 - 2 * opening) + part * np.clip((y - 9) / 4, 0, 1) * (1 - 2 * np.abs(s - 0.5)))
        volume = 0.12 + 0.38 * look["hair_len"]
        k = np.sqrt(np.clip(1 - (np.clip(y - 4.5, 0, None) / (14.5 - 4.5 + volume)) ** 2, 0.0, 1))
        below = np.clip(4.5 - y, 0, None)
        wave = 0.25 * np.sin(az * 23 + y * 0.9 * look["hair_curl"]) + 0.15 * np.sin(az * 51 + 1.3 * y)
        across = (8.6 + volume) * k + 0.12 * below + wave * k
        deep = (9.9 + volume) * k - 0.05 * below + wave * k
        deep = np.where(np.cos(az) > 0, deep * (1 - 0.028 * np.clip(below, 0, 8)), deep)
        p = np.stack([np.sin(az) * across, np.broadcast_to(y, az.shape), np.cos(az) * deep + 0.6], -1)
        a, b = PARTS["headneck"]  # scale with the identity's skull
        skull, neutral = verts[a:b], self.model.v0[a:b]
        high = neutral[:, 1] > 3
        scale = (skull[high].max(0) - skull[high].min(0)) / (neutral[high].max(0) - neutral[high].min(0))
        p = p * np.clip(scale, 0.9, 1.15) + skull[high].mean(0) - neutral[high].mean(0)
        n = np.cross(np.gradient(p, axis=1), np.gradient(p, axis=0))
        n /= np.linalg.norm(n, axis=-1, keepdims=True) + 1e-9
        outward = np.stack([np.sin(az), 0 * az, np.cos(az)], -1)
        n = np.where((n * outward).sum(-1, keepdims=True) < 0, -n, n)
        edge = np.minimum(np.minimum(s, 1 - s) * 14, (1 - t) * 5) + 0 * y + np.where(y > 11.5, 1, 0)
        place = np.stack([np.broadcast_to(s, az.shape), np.broadcast_to(t, az.shape), np.clip(edge, 0, 1)], -1)
        return p.reshape(-1, 3), n.reshape(-1, 3), place.reshape(-1, 3)

    def set_light(self, light: Light) -> None:
        self._key = light.key
        self._set("uKey", tuple(map(float, light.key_colour)))
        self._set("uKeyDir", tuple(map(float, light.key)))
        self._set("uAmb", tuple(map(float, light.ambient)))
        self._set("uL", [tuple(map(float, x)) for x in light.fills])
        self._set("uLC", [tuple(map(float, x)) for x in light.fill_colours])
        self._set("uExp", light.exposure)
        self._set("uSat", light.saturation)
        self._room.write(np.ascontiguousarray(light.room[::-1]).tobytes())
        self._room_program["uT"].value = light.room_place
        self._room_program["uG"].value = light.room_gain

    @staticmethod
    def _shadow_matrix(d: np.ndarray) -> np.ndarray:
        view = look_at(np.array([0, 0, 1.0]) + np.asarray(d, np.float64) * 40, np.array([0, 0, 1]), (0, 1, 0) if abs(d[1]) < 0.95 else (1, 0, 0))
        box = np.diag([1 / 21.0, 1 / 21.0, -1 / 40.0, 1])
        box[2, 3] = -1.0
        return (box @ view).astype(np.float32)

    def _depth(self, matrix: np.ndarray, worn: bool) -> None:
        self._shadow_target.use()
        self._ctx.viewport = (0, 0, SHADOW, SHADOW)
        self._shadow_target.clear(depth=1.0)
        self._ctx.enable_only(moderngl.DEPTH_TEST)
        self._depth_program["uVP"].write(matrix.T.tobytes())
        self._main_depth.render()
        if worn:
            self._frame_depth.render()

    # Once per frame

    def frame(self, posed: np.ndarray, turn: np.ndarray, shift: np.ndarray, view: np.ndarray, camera: np.ndarray, openness: float) -> np.ndarray:
        """(size, size, 3) uint8 of a posed head (render vertices, 6), turned (3, 3) and shifted (3,), seen through `view` (4, 4) from `camera` (3,).

        `openness` 0..1 of the mouth lets light into it.
        """
        ctx, look = self._ctx, self._look
        worn = look["glasses"] is not None
        self._moving.write(np.ascontiguousarray(posed, np.float32).tobytes() + self._still)
        for program in [*self._programs, self._depth_program]:
            program["uHead"].write(turn.T.astype(np.float32).tobytes())
            program["uPivot"].value = PIVOT
            program["uShift"].value = tuple(map(float, shift))
        shadow = self._shadow_matrix(self._key)
        self._depth(shadow, worn)
        self._target.use()
        ctx.viewport = (0, 0, self._inner, self._inner)
        self._target.clear(0, 0, 0, 1)
        ctx.enable_only(moderngl.DEPTH_TEST | moderngl.CULL_FACE)
        self._skin.use(0)
        self._shadow_map.use(1)
        self._set("uTex", 0)
        self._set("uSM", 1)
        self._set_bytes("uVP", view.T.astype(np.float32).tobytes())
        self._set_bytes("uShadow", shadow.T.tobytes())
        self._set("uCam", tuple(map(float, camera)))
        self._set("uOpen", float(openness))
        self._set("uPupil", 0.24)
        self._set("uHair", (0.25 if look["long"] else look["hair_len"], look["hair_curl"], float(self._layers), 0))
        for kind, program in enumerate(self._programs):
            if "uShell" in program:
                program["uShell"].value = float(kind == 1)
        self._main.render()
        if not look["bald"]:
            self._hair.render(vertices=self._hair_count, instances=self._layers)
        ctx.disable(moderngl.CULL_FACE)
        if worn:
            self._frame.render()
        if look["long"] and not look["bald"]:
            self._long.render()
        self._room.use(0)
        self._room_program["uB"].value = 0
        self._room_array.render(moderngl.TRIANGLE_STRIP)
        self._skin.use(0)
        ctx.enable_only(moderngl.DEPTH_TEST | moderngl.BLEND)
        self._lashes.render()
        if worn:
            self._lenses.render()
        image: np.ndarray = np.frombuffer(self._target.read(components=3), np.uint8).reshape(self._inner, self._inner, 3)[::-1]
        if self._inner != self.size:
            image = cv2.resize(image, (self.size, self.size), interpolation=cv2.INTER_AREA)
        return image
