"use strict";
// A cursor that all charts over the same steps share, and the values below it in the legends.
(() => {
  const short = (value) => {
    if (value === null || value === undefined) return "none";
    const size = Math.abs(value);
    if (size !== 0 && size < 1e-3) return value.toExponential(1);
    if (size >= 1e6) return value.toLocaleString("en", { notation: "compact", maximumFractionDigits: 2 });
    return value.toLocaleString("en", { maximumSignificantDigits: 4 });
  };
  const nearest = (xs, x) => {
    let low = 0, high = xs.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (xs[middle] < x) low = middle; else high = middle;
    }
    return x - xs[low] < xs[high] - x ? low : high;
  };
  const plots = [...document.querySelectorAll(".plot")].map((element) => {
    const { range, lines } = JSON.parse(element.querySelector("script").textContent);
    const values = [...element.closest(".chart").querySelectorAll(".legend b")];
    const longest = lines.reduce((a, b) => (b.x.length > a.x.length ? b : a), { x: [] });
    return {
      element, range, lines, values, xs: longest.x, last: values.map((b) => b.textContent),
      cursor: element.querySelector(".cursor"), group: element.closest(".free") ? element : "steps",
    };
  });
  const show = (group, x) => plots.filter((plot) => plot.group === group && plot.xs.length).forEach((plot) => {
    const [from, to] = plot.range;
    const at = plot.xs[nearest(plot.xs, x)];
    plot.at = at;
    plot.cursor.style.display = "block";
    plot.cursor.style.left = `${(100 * (at - from)) / (to - from)}%`;
    plot.cursor.dataset.at = short(group === "steps" ? Math.round(at) : at);
    plot.lines.forEach((line, i) => {
      const inside = line.x.length && x >= line.x[0] - (to - from) / 100 && x <= line.x[line.x.length - 1] + (to - from) / 100;
      plot.values[i].textContent = inside ? short(line.y[nearest(line.x, x)]) : "none";
    });
  });
  const hide = (group) => plots.filter((plot) => plot.group === group).forEach((plot) => {
    plot.cursor.style.display = "none";
    plot.values.forEach((b, i) => { b.textContent = plot.last[i]; });
  });
  plots.forEach((plot) => {
    const move = (event) => {
      const box = plot.element.getBoundingClientRect();
      const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
      show(plot.group, plot.range[0] + share * (plot.range[1] - plot.range[0]));
    };
    plot.element.addEventListener("pointermove", move);
    plot.element.addEventListener("pointerdown", move);
    plot.element.addEventListener("pointerleave", () => hide(plot.group));
    plot.element.addEventListener("blur", () => hide(plot.group));
    plot.element.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
      if (by === undefined || !plot.xs.length) return;
      event.preventDefault();
      const here = plot.at === undefined ? plot.xs.length - 1 : nearest(plot.xs, plot.at);
      show(plot.group, plot.xs[Math.min(plot.xs.length - 1, Math.max(0, here + by))]);
    });
  });
  const theme = document.getElementById("theme");
  theme.hidden = false;
  theme.addEventListener("click", () => {
    const root = document.documentElement.classList;
    const dark = root.contains("dark") || (!root.contains("light") && matchMedia("(prefers-color-scheme: dark)").matches);
    root.remove("dark", "light");
    root.add(dark ? "light" : "dark");
  });
})();
