"""The shaders (GLSL 3.30). One program for each kind of surface, chosen by KIND: 0 skin, eyes, mouth, cloth and frames of glasses; 1 short hair
as shells; 2 long hair; 3 lashes; 4 lenses. All share the lights: a shadowed key, four broad fills with wrap, an ambient; filmic exposure."""

from __future__ import annotations

from tools.synthheads.texture import STRIPE

SHADOW = 512  # pixels of the shadow map's side
KINDS = 5

_COMMON = """
#version 330
uniform mat3 uHead; uniform vec3 uPivot; uniform vec3 uShift;
vec3 headmove(vec3 p, float w){ vec3 q = uHead*(p-uPivot)+uPivot+uShift; return mix(p,q,w); }
vec3 headdir(vec3 n, float w){ return normalize(mix(n, uHead*n, w)); }
float h11(float p){ p=fract(p*.1031); p*=p+33.33; p*=p+p; return fract(p); }
float h31(vec3 p){ p=fract(p*.1031); p+=dot(p,p.zyx+31.32); return fract((p.x+p.y)*p.z); }
"""
VERTEX = (
    _COMMON
    + """
in vec3 in_pos; in vec3 in_nrm; in vec3 in_rest; in vec3 in_uv; in vec4 in_misc; // part, ao, neckw, hair
uniform mat4 uVP; uniform mat4 uShadow; uniform float uShell; uniform vec4 uHair; // len, curl, layers, -
out vec3 vPos; out vec3 vNrm; out vec3 vRest; out vec3 vUV; out vec4 vMisc; out vec4 vSh; out float vLayer;
void main(){
  vec3 p = in_pos, n = normalize(in_nrm + vec3(0.,0.,1e-5));
  vLayer = 0.;
  if (uShell > .5) {
    float k = (float(gl_InstanceID)+1.)/uHair.z; vLayer = k;
    float grow = uHair.x*smoothstep(-.15,.5,in_misc.w);
    vec3 dn = vec3(0.,-1.,-.35); vec3 comb = dn - n*dot(n,dn);
    p += n*k*grow + comb*k*k*grow*1.1;
    n = normalize(n + .25*comb*k);
  }
  p = headmove(p, in_misc.z); n = headdir(n, in_misc.z);
  vPos = p; vNrm = n; vRest = in_rest; vUV = in_uv; vMisc = in_misc;
  vSh = uShadow*vec4(p + n*.12,1.);
  gl_Position = uVP*vec4(p,1.);
}"""
)
_FRAGMENT = """
in vec3 vPos; in vec3 vNrm; in vec3 vRest; in vec3 vUV; in vec4 vMisc; in vec4 vSh; in float vLayer;
uniform sampler2DArray uTex; uniform sampler2D uSM;
uniform vec3 uCam; uniform vec3 uL[4]; uniform vec3 uLC[4]; uniform vec3 uAmb; uniform vec3 uKeyDir; uniform vec3 uKey;
uniform vec3 uIris; uniform vec3 uHairC; uniform vec3 uTeeth; uniform vec3 uGum; uniform vec3 uTongue; uniform vec3 uShirt;
uniform float uOpen; uniform float uExp; uniform vec4 uHair;
uniform float uSSS; uniform float uOil; uniform float uLash; uniform float uSat; uniform float uStripe;
uniform vec3 uFrame; uniform vec2 uLens; // of glasses: colour; tint, mirror
uniform vec3 uEyeC; uniform float uPupil; uniform vec3 uMouth;
out vec4 o;
float shadow(float bias){
  vec3 q = vSh.xyz*.5+.5; float s = 0.; const float e = 1.6/float(SHADOWN);
  for(int i=0;i<4;i++){ vec2 d = vec2(float(i&1)-.5, float(i>>1)-.5)*e*2.;
    s += smoothstep(-bias, bias*.2, textureLod(uSM, q.xy+d, 0.).r - q.z + bias*.5); }
  return s*.25;
}
float vnoise(vec3 p){ vec3 i=floor(p), f=fract(p); f=f*f*(3.-2.*f);
  return mix(mix(mix(h31(i),h31(i+vec3(1,0,0)),f.x),mix(h31(i+vec3(0,1,0)),h31(i+vec3(1,1,0)),f.x),f.y),
             mix(mix(h31(i+vec3(0,0,1)),h31(i+vec3(1,0,1)),f.x),mix(h31(i+vec3(0,1,1)),h31(i+vec3(1,1,1)),f.x),f.y),f.z); }
float ggx(float nh, float r){ float a=r*r; a*=a; float d=(nh*nh*(a-1.)+1.); return a/(3.1416*d*d); }
void main(){
  int part = int(vMisc.x+.5);
  vec3 n = normalize(vNrm), v = normalize(uCam-vPos);
  vec3 alb = vec3(.5); float gloss=.4, rough=.45, ao=vMisc.y, sss=0., alpha=1.;
#if KIND==1
    vec3 q = vRest*8.;
    q += uHair.y*1.2*(vnoise(vRest*1.3+vLayer*1.5)-.5);
    vec3 cell = floor(q); float h = h31(cell); vec3 f = fract(q)-.5;
    float m = smoothstep(-.12,.25, vMisc.w + .4*(h31(cell+3.)-.5));
    if (h*(.35+.65*m) < vLayer*.92 || m < .05) discard;
    if (length(f) > .62*(1.15-vLayer*.6)) discard;
    alb = uHairC*(.6+.55*h31(floor(q*.37))+.25*vLayer)*(.5+.5*vLayer); gloss=.3; ao *= .4+.6*vLayer;
#elif KIND==2
    float s1 = vnoise(vec3(vUV.x*190.,vUV.y*3.,1.)), s2=vnoise(vec3(vUV.x*70.,vUV.y*1.5,5.));
    alb = uHairC*(.45+.6*s1+.45*s2); gloss=.35; float e = vUV.z + .6*(s1-.5);
    if (e < .14) discard; n = normalize(n + .5*(s1-.5)*vec3(n.z,0.,-n.x)); ao = (.55+.45*s2);
    if (dot(n,v)<0.) { n=-n; ao*=.4; }
#elif KIND==3
    float s = h11(floor(vUV.x*70.)+.5); alb=vec3(.015,.012,.01); gloss=.1;
    float w = abs(fract(vUV.x*70.)-.5); alpha = step(.35,s)*smoothstep(.5,.15,w)*uLash
      *(vRest.y<3.3?.45:1.)*smoothstep(1.,.6,length(vRest.xy-vec3(sign(vRest.x)*3.1,3.4,0.).xy)*.36);
#elif KIND==4
    alb = vec3(.02); gloss=1.; rough=.1;
#else
  if (part<=1) {
    vec4 t = texture(uTex, vec3(vUV.xy, vUV.z)); alb = t.rgb*t.rgb*(.2+.8*t.rgb); gloss=t.a*uOil; rough=.52; sss = t.a>.2?uSSS:0.;
  } else if (part==2 || part==4 || part==5) {
    float d = max(0., uMouth.z - vRest.z);
    ao = exp(-d*.20)*(.30+.70*uOpen)*(.35+.65*exp(-max(0.,abs(vRest.x)-1.8)*.8));
    if (part==5) { alb = pow(uTeeth,vec3(2.2))*(.92+.08*vnoise(vRest*6.))*(1.+clamp(vMisc.w+1.,-.5,.5));
      ao*=(vRest.y<uMouth.y?.62:.95); gloss=1.1; rough=.22; sss=.3; }
    else if (part==4) { bool tg = vMisc.w>.5;
      alb = pow(tg?uTongue:uGum,vec3(2.2))*(.85+.3*vnoise(vRest*(tg?vec3(9.):vec3(3.)))); gloss=.9; rough=.3; sss=.4; }
    else { alb = pow(uGum*.75,vec3(2.2)); gloss=.6; sss=.3; ao*=.8; }
  } else if (part==3) { alb = pow(vec3(.62,.36,.33),vec3(2.2)); ao*=.5; sss=.4; }
  else if (part==6) {
    vec3 c = uEyeC; c.x *= sign(vRest.x); vec3 d = vRest-c; float r = length(d.xy); float a = atan(d.y,d.x);
    vec3 white = vec3(.68,.65,.625)*(.93+.07*vnoise(vRest*5.));
    white = mix(white, vec3(.78,.5,.46), smoothstep(.75,1.5,r)*.55 + .10*smoothstep(.62,.75,vnoise(vec3(a*9.,r*3.,c.x))));
    float fib = .6+.55*vnoise(vec3(a*16.,r*5.,c.x)) + .25*vnoise(vec3(a*40.,r*3.,2.));
    vec3 ir = uIris*fib*mix(1.15,.55,smoothstep(.42,.60,r)); ir = mix(ir*1.35, ir, smoothstep(.2,.36,r));
    ir = mix(vec3(.012), ir, smoothstep(uPupil-.025,uPupil+.03,r));
    alb = mix(ir, white, smoothstep(.56,.655,r)); if(d.z<0.) alb=white; alb=pow(alb,vec3(2.2)); gloss=1.3; rough=.12; sss=.15;
    ao = .38+.5*smoothstep(4.12,3.55,vRest.y)*smoothstep(2.75,3.1,vRest.y);
  } else if (part==12) { alb = uFrame; gloss=1.2; rough=.3; }
  else { alb = uShirt*uShirt*(.2+.8*uShirt)*(uStripe>0. && fract(vRest.y*uStripe)<.5?STRIPED:1.); gloss=.12; rough=.52; }
#endif
#if KIND==4
  if (dot(n,v)<0.) n=-n;
#endif
  float nv = max(dot(n,v),.02);
  float sh = shadow(.004);
  // diffuse: broad lamps and sky, then the shadowed key light; red wraps farther (scattering)
  vec3 E = uAmb*(.75+.25*n.y);
  vec3 S = vec3(0.);
  for(int i=0;i<4;i++){ float k=dot(n,uL[i]); float t=.5+.5*k; E += uLC[i]*t*sqrt(t)*t; }
  for(int i=0;i<2;i++){ vec3 hh=normalize(uL[i]+v);
     S += uLC[i]*ggx(max(dot(n,hh),0.),min(1.,rough+.25))*.5*clamp(dot(n,uL[i])+.3,0.,1.); }
  E *= mix(vec3(ao), vec3(sqrt(ao),ao,ao), sss*.5);
  float kd = dot(n,uKeyDir);
  vec3 wrap = sss*vec3(.34,.17,.12);
  vec3 kw = clamp((vec3(kd)+wrap)/(1.+wrap),0.,1.);
  vec3 shc = mix(vec3(sh), vec3(sqrt(sh),sh,sh), sss*.6);
#if KIND==0
  if (part==2||part==4||part==5) shc *= ao;
#endif
  E += uKey*kw*shc;
  vec3 hv = normalize(uKeyDir+v); float nh = max(dot(n,hv),0.);
  vec3 col;
#if KIND==1 || KIND==2
  vec3 T = normalize(vec3(0.,-1.,.2)-n*dot(n,vec3(0.,-1.,.2))); float th=dot(T,hv);
  float ks = 1.-th*th; ks*=ks; ks*=ks; ks*=ks; ks*=ks;
  col = alb*E*.85 + (uKey*sh*ks*.12 + S*.02)*(.12+alb*1.5)*ao;
#else
  float fr = 1.-nv; float f2=fr*fr; float F = .028 + .55*f2*f2*fr;
  S += uKey*sh*clamp(kd*2.,0.,1.)*(.7*ggx(nh,rough)+.3*ggx(nh,rough*.7));
  col = alb*E + S*F*gloss*mix(1.,ao,.7);
  col += alb*E*vec3(.10,.03,.015)*sss*f2;
#endif
#if KIND==4
  vec3 mirrored = reflect(-v,n); float window = smoothstep(.25,.6,mirrored.y)*smoothstep(.9,.75,abs(mirrored.x+.2));
  col = uLens.y*(S*.4 + (uKey*.25+uAmb)*(.10*window+F)); alpha = clamp(uLens.x+dot(col,vec3(.33))*uExp*1.2,0.,.85);
  col = col/max(alpha,.02) + vec3(.01);
#endif
  col *= uExp;
  col = col*(2.51*col+.03)/(col*(2.43*col+.59)+.14);
  col = pow(clamp(col,0.,1.),vec3(1./2.2)); float lum = dot(col,vec3(.3,.59,.11));
  o = vec4(mix(vec3(lum),col,uSat), alpha);
}"""


DEPTH_VERTEX = (
    _COMMON
    + """
in vec3 in_pos; in vec4 in_misc; uniform mat4 uVP;
void main(){ gl_Position = uVP*vec4(headmove(in_pos,in_misc.z),1.); }"""
)
DEPTH_FRAGMENT = "#version 330\nvoid main(){}"
UNFOLD_VERTEX = """#version 330
in vec3 in_rest; in vec3 in_uv; uniform float uTile; out vec3 r;
void main(){ r=in_rest; float off = abs(in_uv.z-uTile)<.5?0.:4.; gl_Position=vec4(in_uv.xy*2.-1.+off,0.,1.); }"""
UNFOLD_FRAGMENT = "#version 330\nin vec3 r; out vec4 o; void main(){ o=vec4(r,1.); }"
ROOM_VERTEX = "#version 330\nin vec2 p; out vec2 t; uniform vec4 uT; void main(){ t=(p*.5+.5)*uT.zw+uT.xy; gl_Position=vec4(p,.9999,1.);} "
ROOM_FRAGMENT = "#version 330\nin vec2 t; uniform sampler2D uB; uniform float uG; out vec4 o; void main(){ o=vec4(texture(uB,t).rgb*uG,1.);} "


def fragment(kind: int) -> str:
    """The fragment shader of one kind of surface."""
    text = _COMMON.replace("#version 330", f"#version 330\n#define KIND {kind}") + _FRAGMENT
    return text.replace("SHADOWN", str(SHADOW)).replace("STRIPED", f"{STRIPE:.3f}")
