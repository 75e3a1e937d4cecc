"use strict";
(() => {
  const byId = (id) => document.getElementById(id);

  function element(name, properties, ...children) {
    const node = Object.assign(document.createElement(name), properties);
    node.append(...children);
    return node;
  }

  // Charts: a line at the nearest measured place, and all values there.
  const tip = byId("tip");
  for (const svg of document.querySelectorAll("svg[data-hover]")) {
    const places = JSON.parse(svg.dataset.hover);
    const vertical = svg.dataset.axis === "x";
    const [start, end] = svg.dataset.span.split(" ").map(Number);
    const cross = document.createElementNS("http://www.w3.org/2000/svg", "path");
    cross.setAttribute("class", "cross");
    const hide = () => { tip.hidden = true; cross.remove(); };

    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const scale = svg.viewBox.baseVal.width / box.width;
      const pointer = scale * (vertical ? event.clientX - box.left : event.clientY - box.top);
      const place = places.reduce((a, b) =>
        Math.abs(b.at - pointer) < Math.abs(a.at - pointer) ? b : a);
      if (vertical) {
        cross.setAttribute("d", `M${place.at},${start}V${end}`);
        svg.append(cross);
      }
      tip.replaceChildren(
        element("b", { textContent: place.title }),
        element("div", {}, ...place.rows.flatMap(([colour, label, value]) => {
          const dot = element("i", {});
          if (colour) dot.style.setProperty("--c", `var(--${colour})`);
          return [dot, element("span", { textContent: label }), element("span", { textContent: value })];
        })),
      );
      tip.hidden = false;
      const left = event.clientX + 16;
      const width = tip.offsetWidth;
      const x = left + width > innerWidth - 8 ? Math.max(8, event.clientX - width - 16) : left;
      const y = Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8);
      tip.style.transform = `translate(${x}px, ${y}px)`;
    });
    svg.addEventListener("pointerleave", hide);
    svg.addEventListener("pointercancel", hide);
  }

  // Samples: headings become tabs; without a script all sets stand one under the other.
  for (const tabs of document.querySelectorAll("[data-tabs]")) {
    const panels = [...tabs.querySelectorAll(".set")];
    const buttons = panels.map((panel, index) => {
      const heading = panel.querySelector("h3");
      heading.hidden = true;
      panel.id = `set-${index}`;
      panel.setAttribute("role", "tabpanel");
      const button = element("button", { type: "button", textContent: heading.textContent });
      button.id = `tab-${index}`;
      button.setAttribute("role", "tab");
      button.setAttribute("aria-controls", panel.id);
      panel.setAttribute("aria-labelledby", button.id);
      button.addEventListener("click", () => select(index));
      button.addEventListener("keydown", (event) => {
        const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (!move) return;
        select((index + move + panels.length) % panels.length).focus();
        event.preventDefault();
      });
      return button;
    });
    function select(chosen) {
      panels.forEach((panel, index) => { panel.hidden = index !== chosen; });
      buttons.forEach((button, index) => {
        button.setAttribute("aria-selected", String(index === chosen));
        button.tabIndex = index === chosen ? 0 : -1;
      });
      return buttons[chosen];
    }
    const list = element("div", { className: "tablist" }, ...buttons);
    list.setAttribute("role", "tablist");
    list.setAttribute("aria-label", "Number of steps");
    tabs.prepend(list);
    const middle = buttons.findIndex((button) => button.textContent.startsWith("8 "));
    select(Math.max(middle, 0));
  }

  // Animation: masks have the width of what they hide, so that nothing moves when it is revealed.
  const data = byId("animation");
  if (!data) return;
  const { pieces, revealed, steps } = JSON.parse(data.textContent);
  const player = byId("player");
  const [canvas, slider, play, status] = ["canvas", "slider", "play", "status"].map(byId);
  // The space before a word stays outside its block: blocks then break over lines as words do.
  const spans = pieces.map((piece) => {
    const [, space, word] = /^(\s*)([^]*)$/.exec(piece);
    const special = /^(¶|<[^<>]*>|\[[A-Z]+\])$/.test(word);
    const span = element("span", { textContent: word || space, className: special ? "special" : "" });
    canvas.append(word ? space : "", span);
    return span;
  });
  const pause = Math.max(120, Math.min(900, 9000 / steps));
  let timer = null;

  function show(step) {
    player.dataset.step = step;
    slider.value = step;
    let known = 0;
    spans.forEach((span, position) => {
      const at = revealed[position];
      known += at <= step;
      span.classList.toggle("masked", at > step);
      span.classList.toggle("new", at === step && step > 0);
    });
    status.textContent = `step ${step} of ${steps} · ${known} of ${spans.length} tokens`;
    slider.setAttribute("aria-valuetext", status.textContent);
  }
  function stop() {
    clearInterval(timer);
    timer = null;
    player.classList.remove("playing");
    play.setAttribute("aria-label", "Play");
  }
  function start() {
    if (Number(player.dataset.step) >= steps) show(0);
    player.classList.add("playing");
    play.setAttribute("aria-label", "Pause");
    timer = setInterval(() => {
      const next = Number(player.dataset.step) + 1;
      show(next);
      if (next >= steps) stop();
    }, pause);
  }
  const by = (change) => () => {
    stop();
    show(Math.max(0, Math.min(steps, Number(player.dataset.step) + change)));
  };
  play.addEventListener("click", () => (timer ? stop() : start()));
  byId("back").addEventListener("click", by(-1));
  byId("forward").addEventListener("click", by(1));
  slider.addEventListener("input", () => { stop(); show(Number(slider.value)); });
  show(0);

  // It plays once by itself when it comes into sight, unless the reader asked for less motion.
  if ("IntersectionObserver" in window && !matchMedia("(prefers-reduced-motion: reduce)").matches) {
    const seen = new IntersectionObserver((entries) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      seen.disconnect();
      if (!timer && player.dataset.step === "0") start();
    }, { threshold: 0.6 });
    seen.observe(player);
  }
})();
