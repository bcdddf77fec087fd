// Values on hover, tap or arrow keys, and arms switched on and off. Without script the page says all it says, in tables.
(() => {
  "use strict";
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const tip = document.createElement("div");
  tip.className = "tip"; tip.hidden = true; tip.setAttribute("role", "status");
  document.body.append(tip);
  let lit = null;
  const points = (figure) => all(".mark[data-tips]:not(.off)", figure).flatMap((mark) => {
    const tips = JSON.parse(mark.dataset.tips);
    return all("use", mark).map((shape, i) => ({ shape, text: tips[Math.min(i, tips.length - 1)] }));
  });
  const hide = () => { if (lit) lit.classList.remove("lit"); lit = null; tip.hidden = true; };
  const show = ({ shape, text }) => {
    hide();
    lit = shape; lit.classList.add("lit");
    tip.textContent = text; tip.hidden = false;
    const at = shape.getBoundingClientRect(), box = tip.getBoundingClientRect();
    const width = document.documentElement.clientWidth;
    const left = Math.max(4, Math.min(at.left + at.width / 2 - box.width / 2, width - box.width - 4));
    const above = at.top - box.height - 8;
    tip.style.left = `${left + scrollX}px`;
    tip.style.top = `${(above < 4 ? at.bottom + 8 : above) + scrollY}px`;
  };
  const nearest = (figure, x, y) => {
    let best = null, least = 18;
    for (const point of points(figure)) {
      const box = point.shape.getBoundingClientRect();
      const far = Math.hypot(box.left + box.width / 2 - x, box.top + box.height / 2 - y);
      if (far < least) { least = far; best = point; }
    }
    return best;
  };
  for (const figure of all("figure")) {
    if (!figure.querySelector(".mark[data-tips]")) continue;
    figure.tabIndex = 0;
    const at = (event) => { const point = nearest(figure, event.clientX, event.clientY); if (point) show(point); else hide(); };
    figure.addEventListener("pointermove", at);
    figure.addEventListener("pointerdown", at);
    figure.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") hide(); });
    figure.addEventListener("blur", hide);
    figure.addEventListener("keydown", (event) => {
      if (event.key === "Escape") return hide();
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!step || event.target !== figure) return;
      event.preventDefault();
      const found = points(figure), now = found.findIndex((point) => point.shape === lit);
      if (found.length) show(found[now < 0 ? (step > 0 ? 0 : found.length - 1) : (now + step + found.length) % found.length]);
    });
  }
  const hidden = new Set();
  const apply = () => {
    hide();
    for (const mark of all(".mark[data-arm]")) mark.classList.toggle("off", hidden.has(mark.dataset.arm));
    for (const button of all(".toggles button")) button.setAttribute("aria-pressed", String(!hidden.has(button.dataset.arm)));
  };
  const swatches = JSON.parse(document.querySelector("main").dataset.swatches);
  for (const place of all(".figures")) {
    const drawn = new Set(all(".mark[data-arm]", place).map((mark) => mark.dataset.arm));
    const arms = swatches.filter(([arm]) => drawn.has(arm));
    if (arms.length < 2) continue;
    const bar = document.createElement("div");
    bar.className = "toggles"; bar.setAttribute("role", "group"); bar.setAttribute("aria-label", "Arms shown in the figures");
    for (const [arm, swatch] of arms) {
      const button = document.createElement("button");
      button.type = "button"; button.textContent = arm; button.dataset.arm = arm;
      button.style.setProperty("--swatch", swatch);
      button.addEventListener("click", () => { if (!hidden.delete(arm)) hidden.add(arm); apply(); });
      bar.append(button);
    }
    place.prepend(bar);
  }
  apply();
})();
