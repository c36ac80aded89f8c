// The static site's figures, drawn when they come into view, in the colours of the page.
"use strict";
const drawn = new IntersectionObserver((seen) => {
  for (const { target, isIntersecting } of seen) {
    if (!isIntersecting) continue;
    drawn.unobserve(target);
    const { data, layout } = JSON.parse(target.querySelector("script").textContent);
    const show = () => Plotly.react(target, data, { ...layout, font: { color: getComputedStyle(target).color, size: 13 } },
      { responsive: true, displaylogo: false, toImageButtonOptions: { format: "svg", filename: target.id } });
    show();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
  }
}, { rootMargin: "300px" });
for (const box of document.querySelectorAll(".figure")) drawn.observe(box);
