// Draws a figure with Plotly, in the app and in the static site alike; its texts have the colour of the page.
"use strict";

const CORNERS = "M0 0h350v110h-240v240h-110zM650 0h350v350h-110v-240h-240z" +
  "M0 650h110v240h240v110h-350zM890 650h110v350h-350v-110h240z";
// One object for all figures: Plotly starts from nothing where a button has changed.
const WHOLE = {
  name: "Fullscreen", title: "Fullscreen", icon: { width: 1000, height: 1000, path: CORNERS },
  click: (box) => (document.fullscreenElement ? document.exitFullscreen() : box.requestFullscreen()),
};

// Another width than the one it was drawn for: a window, a sidebar, the whole screen.
function refit(box) {
  if (!box.clientWidth || box.uqWidth === box.clientWidth) return;
  box.uqWidth = box.clientWidth;
  const whole = document.fullscreenElement === box;
  Plotly.relayout(box, { width: box.clientWidth, height: whole ? box.clientHeight : box.uqHeight });
}

function drawFigure(box, figure, name, format) {
  const style = getComputedStyle(box), { data, layout } = figure;
  layout.font = { color: style.color, family: style.fontFamily };
  layout.autosize = true;
  if (box.clientWidth < 600) { // no room for a long legend or title
    figure.data = data.filter((trace) => trace.visible !== "legendonly");
    const title = layout.xaxis?.title;
    if (title?.text) title.text = title.text.replace("; ", ";<br>");
  }
  if (!box.uqHeight) new ResizeObserver(() => refit(box)).observe(box);
  [box.uqWidth, box.uqHeight] = [box.clientWidth, layout.height];
  return Plotly.react(box, figure.data, layout, {
    displaylogo: false, modeBarButtonsToAdd: [WHOLE], modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"],
    toImageButtonOptions: { format, filename: `uqharness-${name}`, scale: 2 },
  });
}
