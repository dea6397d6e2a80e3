"use strict";
const figures = JSON.parse(document.getElementById("figures").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const touch = matchMedia("(pointer: coarse)").matches; // a finger that drags scrolls the page

function theme() {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const axis = {
    "gridcolor": colour("--line"), "linecolor": colour("--line"), "zerolinecolor": colour("--line"),
    "tickcolor": colour("--line"), "tickfont.color": colour("--soft"), "title.font.color": colour("--soft"),
    "tickfont.size": 12, "title.font.size": 12, "title.standoff": 8,
  };
  const layout = {
    "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)",
    "font.family": getComputedStyle(document.body).fontFamily, "font.color": colour("--text"), "font.size": 13,
    "hoverlabel.bgcolor": colour("--card"), "hoverlabel.bordercolor": colour("--line"), "hoverlabel.font.color": colour("--text"),
    "legend.bgcolor": "rgba(0,0,0,0)", "modebar.bgcolor": "rgba(0,0,0,0)", "modebar.color": colour("--soft"),
    "modebar.activecolor": colour("--accent"),
  };
  for (const [name, value] of Object.entries(axis)) {
    layout["xaxis." + name] = value;
    layout["yaxis." + name] = value;
  }
  return layout;
}

for (const [name, figure] of Object.entries(figures)) {
  const element = document.getElementById(name);
  const layout = Object.assign({ // the buttons stand above the plot, the legend below it
    margin: { l: 48, r: 12, t: 32, b: 40 }, hovermode: "x unified", dragmode: touch ? false : "zoom",
    legend: { orientation: "h", yref: "container", y: 0, yanchor: "bottom", x: 0, xanchor: "left", font: { size: 12 } },
  }, figure.layout);
  Plotly.newPlot(element, figure.data, layout, {
    responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"],
    toImageButtonOptions: { filename: name, scale: 2 },
  }).then(() => Plotly.relayout(element, theme()));
}

dark.addEventListener("change", () => {
  for (const name of Object.keys(figures)) Plotly.relayout(name, theme());
});

for (const button of document.querySelectorAll(".switch")) {
  button.addEventListener("click", () => {
    const log = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", log);
    Plotly.relayout(button.dataset.chart, { "yaxis.type": log ? "log" : "linear", "yaxis.autorange": true });
  });
}

const closer = document.getElementById("closer");
for (const button of document.querySelectorAll(".picture")) {
  button.addEventListener("click", () => {
    const image = button.querySelector("img");
    closer.querySelector("img").src = image.src;
    closer.querySelector("img").className = button.classList.contains("small") ? "small" : "";
    closer.querySelector("p").textContent = image.alt;
    closer.showModal();
  });
}
closer.addEventListener("click", () => closer.close());
