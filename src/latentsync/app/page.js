// Both players of a result go together: the result leads, the original follows without sound.
(() => {
  const pairOf = (video) => video.closest && video.closest('.pair');
  const follow = (event) => {
    const after = event.target;
    if (!(after instanceof HTMLVideoElement) || !after.classList.contains('after')) return;
    const pair = pairOf(after);
    const before = pair && pair.querySelector('video.before');
    const button = pair && pair.parentElement.querySelector('[data-play]');
    if (button) button.textContent = after.paused ? 'Play both' : 'Pause';
    if (!before) return;
    const at = before.duration ? Math.min(after.currentTime, before.duration) : after.currentTime;
    if (event.type === 'seeking' || event.type === 'play' || Math.abs(before.currentTime - at) > 0.15) before.currentTime = at;
    before.playbackRate = after.playbackRate;
    const over = before.duration && after.currentTime >= before.duration;
    if (after.paused || over) before.pause();
    else if (before.paused) before.play().catch(() => {});
  };
  for (const type of ['play', 'pause', 'seeking', 'timeupdate', 'ratechange', 'ended']) document.addEventListener(type, follow, true);
  document.addEventListener('click', (event) => {
    const result = event.target.closest && event.target.closest('.result');
    if (!result) return;
    const after = result.querySelector('video.after');
    const before = result.querySelector('video.before');
    if (event.target.closest('[data-play]') || event.target === before) {
      if (after.paused) after.play().catch(() => {});
      else after.pause();
    }
    const hear = event.target.closest('[data-hear]');
    if (hear && before) {
      const old = hear.getAttribute('aria-pressed') !== 'true';
      hear.setAttribute('aria-pressed', String(old));
      before.muted = !old;
      after.muted = old;
    }
  });
  document.documentElement.lang = 'en';
})();
