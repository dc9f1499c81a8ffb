// A line chart on a canvas: axes, curves, a legend with the values under the pointer, zooming by dragging.

const MARGIN = { left: 62, right: 10, top: 8, bottom: 24 };

export function short(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size >= 1e9) return +(value / 1e9).toPrecision(3) + "G";
  if (size >= 1e6) return +(value / 1e6).toPrecision(3) + "M";
  if (size >= 1e4) return +(value / 1e3).toPrecision(3) + "k";
  if (size >= 1000 || size === 0 || Number.isInteger(value)) return value.toFixed(0);
  return size < 1e-3 ? value.toExponential(1) : String(+value.toPrecision(4));
}

// About `count` round numbers between low and high.
function ticks(low, high, count) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw);
  const found = [];
  for (let i = 0; i <= count; i++) { // an index, because low + step may equal low
    const tick = (Math.ceil(low / step) + i) * step;
    if (tick <= high + step * 1e-9) found.push(tick);
  }
  return found;
}

// An exponential moving average without bias towards the first value. Its width is a share of the chart instead of a
// number of points, so that a curve of few points does not lag.
export function smooth(ys, strength) {
  const weight = strength ** (600 / ys.length);
  let sum = 0, total = 0;
  return ys.map((y) => {
    sum = sum * weight + y * (1 - weight);
    total = total * weight + (1 - weight);
    return sum / total;
  });
}

// The index of the value nearest to x in xs, which is sorted.
function nearest(xs, x) {
  let low = 0, high = xs.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] < x) low = middle; else high = middle;
  }
  return Math.abs(xs[high] - x) < Math.abs(xs[low] - x) ? high : low;
}

export class Chart {
  // choose(low, high) is called when a range of x was selected, choose() to reset it; hover(x) when the pointer moves, hover(null) when it leaves.
  constructor(title, choose, hover) {
    this.figure = document.createElement("figure");
    const caption = document.createElement("figcaption");
    caption.textContent = title;
    this.canvas = document.createElement("canvas");
    this.canvas.setAttribute("aria-label", title);
    this.box = document.createElement("div");
    this.box.className = "values";
    this.figure.append(caption, this.canvas, this.box);
    this.figure.dataset.title = title;
    this.lines = [];
    this.x = null;
    this.listen(choose, hover);
  }

  listen(choose, hover) {
    const at = (event) => this.xOf(event.clientX - this.canvas.getBoundingClientRect().left);
    this.canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      this.canvas.setPointerCapture(event.pointerId);
      this.from = at(event);
    });
    this.canvas.addEventListener("pointermove", (event) => {
      this.to = this.from === undefined ? undefined : at(event);
      hover(at(event));
    });
    this.canvas.addEventListener("pointerup", (event) => {
      if (this.from === undefined) return;
      const [low, high] = [this.from, at(event)].sort((a, b) => a - b);
      this.from = this.to = undefined;
      if (high - low > (this.high - this.low) / 100) choose(low, high);
    });
    this.canvas.addEventListener("pointerleave", () => hover(null));
    this.canvas.addEventListener("dblclick", () => choose());
  }

  // lines: [{label, color, width, xs, ys}]; range: [low, high] of x, or undefined; log: a logarithmic y axis.
  show(lines, range, log) {
    this.lines = lines.filter((line) => line.xs.length);
    const all = (name) => this.lines.map((line) => line[name]);
    const extent = (arrays) => arrays.reduce(([low, high], a) =>
      a.reduce(([l, h], v) => [v < l ? v : l, v > h ? v : h], [low, high]), [Infinity, -Infinity]);
    [this.low, this.high] = range ?? extent(all("xs"));
    if (!(this.high > this.low)) this.high = this.low + 1;
    const seen = this.lines.map((line) => line.ys.filter((y, i) => line.xs[i] >= this.low && line.xs[i] <= this.high));
    let [bottom, top] = extent(seen);
    this.log = log && bottom > 0;
    [bottom, top] = [bottom, top].map((y) => this.scale(y));
    const room = top > bottom ? (top - bottom) * 0.05 : Math.abs(top) * 0.1 || 1;
    [this.bottom, this.top] = [bottom - room, top + room];
    this.figure.dataset.lines = this.lines.length;
    this.figure.dataset.end = extent(all("xs"))[1];
    this.draw();
  }

  scale(y) { return this.log ? Math.log10(y) : y; }
  xOf(pixel) {
    const share = (pixel - MARGIN.left) / (this.canvas.clientWidth - MARGIN.left - MARGIN.right);
    return this.low + Math.min(1, Math.max(0, share)) * (this.high - this.low);
  }

  // x: the position of the pointer, or null; by default the last one.
  draw(x = this.x) {
    this.x = x;
    const { clientWidth: width, clientHeight: height } = this.canvas, ratio = devicePixelRatio;
    if (!width || !this.lines.length) return;
    this.canvas.width = width * ratio;
    this.canvas.height = height * ratio;
    const pen = this.canvas.getContext("2d"), style = getComputedStyle(this.figure);
    pen.scale(ratio, ratio);
    const [w, h] = [width - MARGIN.left - MARGIN.right, height - MARGIN.top - MARGIN.bottom];
    const across = (v) => MARGIN.left + (v - this.low) / (this.high - this.low) * w;
    const down = (v) => MARGIN.top + (this.top - this.scale(v)) / (this.top - this.bottom) * h;
    this.axes(pen, style, across, width, height);
    pen.save();
    pen.beginPath();
    pen.rect(MARGIN.left, MARGIN.top, w, h);
    pen.clip();
    pen.lineJoin = "round";
    for (const line of this.lines) {
      pen.strokeStyle = pen.fillStyle = line.color;
      pen.lineWidth = line.width;
      pen.globalAlpha = line.alpha ?? 1;
      pen.beginPath();
      line.xs.forEach((v, i) => pen.lineTo(across(v), down(line.ys[i])));
      pen.stroke();
      if (line.xs.length === 1) pen.fillRect(across(line.xs[0]) - 2, down(line.ys[0]) - 2, 4, 4);
    }
    pen.globalAlpha = 1;
    if (x !== null) this.marks(pen, style, x, across, h);
    pen.restore();
    this.tell(x);
  }

  axes(pen, style, across, width, height) {
    pen.font = "11px system-ui, sans-serif";
    pen.fillStyle = style.color;
    pen.strokeStyle = style.borderTopColor;
    pen.textAlign = "right";
    for (const v of ticks(this.bottom, this.top, 4)) {
      const y = MARGIN.top + (this.top - v) / (this.top - this.bottom) * (height - MARGIN.top - MARGIN.bottom);
      pen.fillText(short(this.log ? 10 ** v : +v.toPrecision(12)), MARGIN.left - 6, y + 4);
      pen.strokeRect(MARGIN.left, y, width - MARGIN.left - MARGIN.right, 0);
    }
    pen.textAlign = "center";
    for (const v of ticks(this.low, this.high, Math.max(2, width / 110))) {
      pen.fillText(short(+v.toPrecision(12)), Math.min(across(v), width - 18), height - 6);
    }
  }

  marks(pen, style, x, across, h) {
    pen.strokeStyle = style.color;
    pen.lineWidth = 0.5;
    pen.strokeRect(across(x), MARGIN.top, 0, h);
    if (this.to === undefined) return;
    pen.globalAlpha = 0.15;
    pen.fillStyle = style.color;
    pen.fillRect(across(this.from), MARGIN.top, across(this.to) - across(this.from), h);
  }

  // The legend: each line's value at x, or its last one. Text, never HTML.
  tell(x) {
    const room = Math.max(24, this.canvas.clientWidth / 7 - 20); // characters; a name is cut in its middle
    const cut = (name) => name.length > room ? `${name.slice(0, room / 3)}…${name.slice(1 - room * 2 / 3)}` : name;
    this.box.replaceChildren(...this.lines.filter((line) => line.label).map((line) => {
      const row = document.createElement("div"), swatch = document.createElement("span");
      const name = document.createElement("span"), value = document.createElement("b");
      const i = x === null ? line.xs.length - 1 : nearest(line.xs, x);
      swatch.className = "swatch";
      swatch.style.background = line.color;
      name.textContent = cut(line.label);
      name.title = line.label;
      name.className = "name";
      value.textContent = `${short(line.ys[i])} at ${short(line.xs[i])}`;
      row.append(swatch, name, value);
      return row;
    }));
  }
}
