"""Writing the result: one encode, the sound beside it, and the file in place only when it is whole."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from contextlib import ExitStack, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.container import OutputContainer
from av.packet import Packet

from latentsync.errors import LatentSyncError, OutputError, UsageError
from latentsync.media.audio import Audio, open_audio
from latentsync.media.encoding import Encoding, check_encoding, choose_encoding, time_base_for
from latentsync.media.frame import Frame
from latentsync.media.layout import Patched, Plane, write_frame
from latentsync.media.picture import Picture
from latentsync.media.soundtrack import Soundtrack
from latentsync.media.source import opened
from latentsync.media.video import VideoInfo

_INTERLEAVE = 1_000_000  # microseconds of packets that the muxer may hold while one stream waits for the other


def check_output(out: Path, codec: str = "h264", crf: int | None = None, *, overwrite: bool = False, inputs: tuple[Path, ...] = ()) -> None:
    """Raises `UsageError` or `OutputError` for everything that can be known to be wrong with an output before any work."""
    check_encoding(out, codec, crf)
    folder = out.parent
    if out.is_dir():
        raise OutputError(f"{out} is a folder; name a file in it, such as {out / 'result.mp4'}")
    if not folder.is_dir():
        raise OutputError(f"the folder {folder} does not exist; create it first")
    for source in inputs:
        with suppress(OSError):
            if os.path.samefile(out, source):
                raise OutputError(f"{out} is also an input; choose another name for the result")
    if os.path.lexists(out):
        if not overwrite:
            raise OutputError(f"{out} exists; pass --overwrite to replace it, or choose another name")
        with suppress(OSError):
            if not stat.S_ISREG(os.stat(out).st_mode):
                raise OutputError(f"{out} is not a regular file; choose another name")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"no permission to write in {folder}; choose another folder")


class VideoWriter:
    """Encodes frames and a soundtrack into `out`, which appears when the with-block ends well and never otherwise.

    `like` describes the pictures (usually `video.info`); `audio` is a file (or an open `Audio`) whose sound goes beside them, cut where the
    pictures end, and at `length` seconds if given. `rate` is the constant rate of the frames where they were resampled; by default frame
    times are ticks of the source's own clock. Raises `UsageError` for codecs and containers that do not go together, `OutputError` where
    the result cannot be written, `InputError` for an unreadable soundtrack.
    """

    def __init__(
        self,
        out: Path,
        like: VideoInfo,
        *,
        audio: Path | Audio | None,
        length: Fraction | None = None,
        codec: str = "h264",
        crf: int | None = None,
        overwrite: bool = False,
        rate: Fraction | None = None,
    ) -> None:
        self.out = Path(out)
        sound = audio.info.path if isinstance(audio, Audio) else audio
        check_output(self.out, codec, crf, overwrite=overwrite, inputs=(like.path, *([Path(sound)] if sound is not None else [])))
        self.encoding: Encoding = choose_encoding(self.out, codec, crf, like)
        self._like = like
        self._audio = open_audio(Path(audio)) if isinstance(audio, str | os.PathLike) else audio
        self._length = None if length is None else Fraction(length)
        self._overwrite = overwrite
        self._rate = rate or (like.rate if like.rate and like.rate > 0 else None)
        self._time_base = time_base_for(self.encoding.suffix, like, rate)
        self._scratch = self.out.with_name(f".latentsync-{secrets.token_hex(8)}{self.encoding.suffix}")
        self._container: OutputContainer | None = None
        self._sound: Soundtrack | None = None
        self._durations: dict[int, int] = {}  # ticks each frame is shown, until its packet comes out of the encoder
        self._last = -1
        self._end = Fraction(0)
        self._shown: Picture | None = None
        self._planes: tuple[Plane, ...] = ()
        self._patches: tuple[Patched, ...] = ()
        self._stack = ExitStack()
        self.notes: tuple[str, ...] = ()  # what the container cannot carry
        if like.pixel_aspect != 1 and codec in ("prores", "ffv1") and self.encoding.suffix != ".mov":
            self.notes += (f"{self.encoding.suffix} does not carry the pixel aspect {like.pixel_aspect} for {codec}; players may show square pixels",)
        if self.encoding.suffix == ".avi" and (like.colour.matrix != 2 or like.layout.full):
            self.notes += (".avi does not carry colour tags; use .mkv to keep them",)

    @property
    def audio_copied(self) -> bool | None:
        """Whether the soundtrack is copied bit by bit; None without one."""
        return None if self._sound is None else self._sound.copied

    def __enter__(self) -> VideoWriter:
        try:
            self._open()
        except BaseException:
            self._discard()
            raise
        return self

    def write(self, frame: Frame) -> None:
        """Adds the next frame. Times must increase; pictures must have the size announced."""
        picture = frame.picture
        if (picture.width, picture.height) != (self._like.width, self._like.height):
            raise ValueError(f"a picture of {picture.width}x{picture.height} in a video of {self._like.width}x{self._like.height}")
        encoding = self.encoding
        if picture is not self._shown:  # stills and frozen frames come as the same picture again
            self._shown, (self._planes, self._patches) = picture, picture.to(encoding.layout).parts
        image = write_frame(self._planes, encoding.layout, encoding.pixel_format, self._patches)
        tick = max(round(frame.time / self._time_base), self._last + 1)
        end = frame.time + frame.duration
        self._durations[tick] = max(1, round(end / self._time_base) - tick)
        self._last, self._end = tick, max(self._end, end)
        image.pts = tick
        image.time_base = self._time_base
        colour = encoding.colour
        image.colorspace, image.color_range = colour.matrix, colour.range
        if hasattr(image, "color_trc"):  # PyAV 17 and later; the encoder has both from its context in any case
            image.color_primaries, image.color_trc = colour.primaries, colour.transfer
        try:
            self._mux(self._track.encode(image))
        except (av.error.FFmpegError, OSError) as e:
            raise self._failure(e) from e

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is not None:
            self._discard()
            return
        try:
            self._finish()
        except BaseException:
            self._discard()
            raise

    # opening

    def _open(self) -> None:
        e, like = self.encoding, self._like
        options = {"max_interleave_delta": str(_INTERLEAVE)}
        if e.muxer in ("mp4", "mov"):
            options["video_track_timescale"] = str(self._time_base.denominator)
        if e.muxer == "mp4":
            options["movflags"] = "+faststart"
        try:
            # The prefix keeps libav from reading the folder's name as a protocol or a pattern.
            self._container = av.open(f"file:{os.path.abspath(self._scratch)}", "w", format=e.muxer, container_options=options)
            track: Any = self._container.add_stream(e.encoder, rate=self._rate or Fraction(25), options=e.options, time_base=self._time_base)
            track.width, track.height, track.pix_fmt = like.width, like.height, e.pixel_format
            context = track.codec_context
            context.time_base = self._time_base
            if like.pixel_aspect != 1:
                context.sample_aspect_ratio = like.pixel_aspect.limit_denominator(255)
            context.colorspace, context.color_range = e.colour.matrix, e.colour.range
            context.color_primaries, context.color_trc = e.colour.primaries, e.colour.transfer
            if e.tag:
                context.codec_tag = e.tag
            self._track = track
            if self._audio is not None:
                source = self._stack.enter_context(opened(self._audio.info.path))
                self._sound = Soundtrack(self._container, e.suffix, self._audio, source)
            self._container.start_encoding()
        except ValueError as error:
            if isinstance(error, av.error.FFmpegError):
                raise self._unencodable(error) from error
            raise UsageError(f"cannot write {e.codec} with this sound into {e.suffix}: {error}; use .mkv") from error
        except av.error.FFmpegError as error:
            if error.errno in _DISK:
                raise self._failure(error) from error
            raise self._unencodable(error) from error
        except OSError as error:
            raise self._failure(error) from error

    def _unencodable(self, error: Exception) -> UsageError:
        what = f"{self.encoding.codec} cannot encode {self._like.width}x{self._like.height} {self.encoding.pixel_format}"
        other = "h264" if self.encoding.codec == "ffv1" else "ffv1"
        return UsageError(f"{what}: {getattr(error, 'strerror', None) or error}; try --codec {other}")

    # packets

    def _mux(self, packets: list[Packet]) -> None:
        assert self._container is not None
        for packet in packets:
            if packet.pts is not None:
                packet.duration = self._durations.pop(packet.pts, packet.duration or 0)
            if self._sound is not None and packet.dts is not None:
                self._mux_sound(self._sound.until(packet.dts * Fraction(packet.time_base)))
            self._container.mux_one(packet)

    def _mux_sound(self, packets: Any) -> None:
        assert self._container is not None
        for packet in packets:
            self._container.mux_one(packet)

    # ending

    def _finish(self) -> None:
        if self._last < 0:
            raise OutputError(f"nothing was written to {self.out}: no frames")
        assert self._container is not None
        try:
            self._mux(self._track.encode(None))
            if self._sound is not None:
                end = self._end if self._length is None else min(self._end, self._length)
                self._mux_sound(self._sound.finish(end))
            self._container.close()
        except (av.error.FFmpegError, OSError) as e:
            raise self._failure(e) from e
        self._container = None
        self._stack.close()
        self._publish()

    def _publish(self) -> None:
        """Moves the finished file to its name: replacing with `overwrite`, and otherwise only if nobody made one meanwhile."""
        try:
            if self._overwrite:
                os.replace(self._scratch, self.out)
                return
            if os.name == "nt":
                os.rename(self._scratch, self.out)  # refuses an existing name there
                return
            try:
                os.link(self._scratch, self.out)
            except FileExistsError:
                raise
            except OSError:  # a file system without hard links: reserve the name, then replace the reservation
                os.close(os.open(self.out, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                os.replace(self._scratch, self.out)
                return
            os.unlink(self._scratch)
        except FileExistsError as e:
            raise OutputError(f"{self.out} was made by someone else meanwhile; it is left alone. Pass --overwrite, or choose another name") from e
        except OSError as e:
            raise self._failure(e) from e

    def _discard(self) -> None:
        """Leaves no trace."""
        with suppress(OSError):
            os.unlink(self._scratch)  # first, so that closing does not bother to finish the file
        if self._container is not None:
            with suppress(av.error.FFmpegError, OSError, ValueError):
                self._container.close()
            self._container = None
        with suppress(OSError):
            os.unlink(self._scratch)
        self._stack.close()

    def _failure(self, error: Exception) -> LatentSyncError:
        code = getattr(error, "errno", None)
        if code == errno.ENOSPC:
            return OutputError(f"the disk is full: {self.out} could not be written; free some space or choose another folder")
        if code in (errno.EFBIG, errno.EDQUOT):
            return OutputError(f"{self.out} may not grow that large (a limit or quota of this system); free some space or choose another folder")
        if code in (errno.EACCES, errno.EPERM, errno.EROFS):
            return OutputError(f"no permission to write {self.out}; choose another folder")
        return OutputError(f"cannot write {self.out}: {getattr(error, 'strerror', None) or error}")


_DISK = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENOENT, errno.ENAMETOOLONG}
