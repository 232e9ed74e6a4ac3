// Shows the values of a chart's lines at the step under the pointer. The page is complete without it.
const NS = "http://www.w3.org/2000/svg";

function value(number) {
  const size = Math.abs(number);
  return size !== 0 && (size < 1e-3 || size >= 1e5) ? number.toExponential(2) : String(+number.toPrecision(4));
}

function place(scale, number) {
  let [low, high, start, end, log] = scale;
  number = Math.min(Math.max(number, low), high);
  if (log) [number, low, high] = [number, low, high].map(Math.log10);
  return start + ((number - low) / (high - low)) * (end - start);
}

function nearest(points, x) {
  let low = 0, high = points.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < x) low = middle; else high = middle;
  }
  return Math.abs(points[low][0] - x) <= Math.abs(points[high][0] - x) ? points[low] : points[high];
}

for (const svg of document.querySelectorAll("svg[data-chart]")) {
  const chart = JSON.parse(svg.dataset.chart);
  const figure = svg.closest("figure");
  const marks = document.createElementNS(NS, "g");
  svg.append(marks);
  let tip = null;

  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), view = svg.viewBox.baseVal;
    const [low, high, start, end] = chart.x;
    const at = ((event.clientX - box.left) / box.width) * view.width;
    const x = low + ((at - start) / (end - start)) * (high - low);
    const found = chart.series.map((one) => ({ ...one, point: nearest(one.points, x) }));
    const step = found.reduce((best, one) => Math.abs(one.point[0] - x) < Math.abs(best - x) ? one.point[0] : best, found[0].point[0]);
    const column = place(chart.x, step);
    marks.replaceChildren();
    const cross = document.createElementNS(NS, "line");
    for (const [name, number] of [["x1", column], ["x2", column], ["y1", chart.y[3]], ["y2", chart.y[2]]]) cross.setAttribute(name, number);
    cross.setAttribute("class", "cross");
    marks.append(cross);
    tip ??= figure.appendChild(Object.assign(document.createElement("div"), { className: "tip" }));
    tip.replaceChildren(Object.assign(document.createElement("div"), { textContent: "step " + step.toLocaleString(), className: "quiet" }));
    for (const one of found) {
      const spot = document.createElementNS(NS, "circle");
      spot.setAttribute("class", "spot " + one.colour);
      spot.setAttribute("cx", place(chart.x, one.point[0]));
      spot.setAttribute("cy", place(chart.y, one.point[1]));
      spot.setAttribute("r", 4.5);
      marks.append(spot);
      const row = Object.assign(document.createElement("div"), { textContent: one.name });
      row.prepend(Object.assign(document.createElement("span"), { className: one.colour, textContent: "● " }));
      row.append(Object.assign(document.createElement("b"), { textContent: value(one.point[1]) }));
      tip.append(row);
    }
    const frame = figure.getBoundingClientRect();
    const left = box.left - frame.left + (column / view.width) * box.width;
    const room = frame.width - left > tip.offsetWidth + 24;
    tip.style.left = (room ? left + 12 : left - tip.offsetWidth - 12) + "px";
    tip.style.top = event.clientY - frame.top + 14 + "px";
  });
  svg.addEventListener("pointerleave", () => { marks.replaceChildren(); tip?.remove(); tip = null; });
}

// The newest pictures are at the right end; on a phone each row is scrolled by itself.
for (const row of document.querySelectorAll(".scroll.newest, .scroll.newest tr")) row.scrollLeft = row.scrollWidth;

// A sample is enlarged on the page; arrows go to the ones beside it. A click with a key held opens the file as ever.
const links = [...document.querySelectorAll(".samples a")];
let viewer = null;

function enlarge(index) {
  const link = links[index], small = link?.querySelector("img, video");
  if (!small) return;
  if (!viewer) {
    viewer = document.body.appendChild(Object.assign(document.createElement("dialog"), { className: "viewer" }));
    viewer.addEventListener("click", () => viewer.close());
    viewer.addEventListener("keydown", (event) => {
      const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (by) enlarge(+viewer.dataset.index + by);
    });
  }
  const clip = small.tagName === "VIDEO";
  const large = Object.assign(document.createElement(clip ? "video" : "img"), { src: link.href, alt: small.getAttribute("alt") });
  if (clip) Object.assign(large, { autoplay: true, loop: true, muted: true, playsInline: true });
  // The file may have stayed behind where the page was copied from.
  else large.addEventListener("error", () => { large.src = small.src; }, { once: true });
  const words = [small.getAttribute("alt"), link.closest("td").dataset.step, small.title].filter(Boolean).join(" · ");
  viewer.replaceChildren(large, Object.assign(document.createElement("p"), { textContent: words }));
  viewer.dataset.index = index;
  if (!viewer.open) viewer.showModal();
}

links.forEach((link, index) => link.addEventListener("click", (event) => {
  if (event.ctrlKey || event.metaKey || event.shiftKey || link.closest("td").querySelector("audio")) return;
  event.preventDefault();
  enlarge(index);
}));

// The page of a run that goes on reads itself again; what was opened and switched stays so.
const { alive, every } = document.body.dataset;
const kept = "st " + location.pathname;
const state = () => [...document.querySelectorAll("details, .log-switch")];

if (alive) {
  const before = JSON.parse(sessionStorage.getItem(kept) ?? "null");
  if (before) state().forEach((one, index) => { one[one.matches("details") ? "open" : "checked"] = before[index] ?? false; });
  const badge = document.querySelector(".badge");
  setInterval(() => {
    const silent = Date.now() / 1000 - alive;
    if (silent > 5 * every + 60) {
      badge.className = "badge silent";
      badge.textContent = "not heard of for " + (silent < 7200 ? Math.round(silent / 60) + " min" : Math.round(silent / 3600) + " h");
    }
  }, 1000);
  setInterval(() => {
    const busy = viewer?.open || document.hidden || [...document.querySelectorAll("audio")].some((one) => !one.paused);
    if (busy) return;
    sessionStorage.setItem(kept, JSON.stringify(state().map((one) => one.matches("details") ? one.open : one.checked)));
    location.reload();
  }, 1000 * every);
}
