// Boxes drawn over a picture with mouse, pen or finger; the page of a first frame and the app share it.
// root holds an <img> and an element .boxes over it. read() gives {width, height, boxes, chosen, locked}: pixels of the
// picture, a list of {id, xywh}, the id that the next box replaces (or null), whether it is only to be looked at;
// write({boxes, chosen}) takes what changed.
function stage(root, read, write) {
  const COLORS = ['#ff9f00', '#56c8ff', '#00c882', '#ff6ebe', '#f0e442', '#d55e00'];
  const MOST = 8;
  let from = null;
  const part = name => root.querySelector(name);
  const share = value => Math.min(Math.max(value, 0), 1);
  const point = event => {
    const seen = part('img').getBoundingClientRect(), now = read();
    return [share((event.clientX - seen.left) / seen.width) * now.width,
            share((event.clientY - seen.top) / seen.height) * now.height];
  };
  const between = (a, b) => [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.abs(a[0] - b[0]), Math.abs(a[1] - b[1])]
    .map(value => Math.round(value * 10) / 10);
  const overlap = (a, b) => {
    const w = Math.min(a[0] + a[2], b[0] + b[2]) - Math.max(a[0], b[0]);
    const h = Math.min(a[1] + a[3], b[1] + b[3]) - Math.max(a[1], b[1]);
    const both = Math.max(w, 0) * Math.max(h, 0);
    return both / (a[2] * a[3] + b[2] * b[3] - both);
  };

  // A box over an older one corrects it, one elsewhere is a further target.
  const taken = xywh => {
    const {boxes, chosen} = read();
    const old = boxes.find(box => box.id === chosen) || boxes.find(box => overlap(box.xywh, xywh) > 0.3);
    if (old) return boxes.map(box => box === old ? {id: old.id, xywh} : box);
    if (boxes.length >= MOST) return boxes;
    return [...boxes, {id: 1 + Math.max(0, ...boxes.map(box => box.id)), xywh}];
  };

  const outline = (box, now) => {
    const drawn = document.createElement('div');
    drawn.className = 'box' + (box.id === now.chosen ? ' chosen' : '');
    drawn.style.borderColor = COLORS[(box.id - 1) % COLORS.length];
    const [x, y, w, h] = box.xywh;
    Object.assign(drawn.style, {left: `${100 * x / now.width}%`, top: `${100 * y / now.height}%`,
                                width: `${100 * w / now.width}%`, height: `${100 * h / now.height}%`});
    const tag = document.createElement('span');
    tag.textContent = box.id;
    tag.title = 'the next box that you draw is this target';
    tag.onclick = () => now.locked || write({boxes: now.boxes, chosen: box.id === now.chosen ? null : box.id});
    const drop = document.createElement('button');
    drop.textContent = '×';
    drop.title = 'remove this target';
    drop.onclick = () => write({boxes: now.boxes.filter(other => other.id !== box.id), chosen: null});
    drawn.append(...(now.locked ? [tag] : [tag, drop]));
    return drawn;
  };
  const show = (boxes = read().boxes) => {
    const now = read();
    if (part('.boxes')) part('.boxes').replaceChildren(...boxes.map(box => outline(box, {...now, boxes})));
  };

  root.addEventListener('pointerdown', event => {
    if (event.target !== part('img') || !read().width || read().locked || event.button) return;
    event.preventDefault();
    event.target.setPointerCapture(event.pointerId);
    from = point(event);
  });
  root.addEventListener('pointermove', event => { if (from) show(taken(between(from, point(event)))); });
  root.addEventListener('pointercancel', () => { from = null; show(); });
  root.addEventListener('pointerup', event => {
    if (!from) return;
    const xywh = between(from, point(event));
    from = null;
    if (xywh[2] < 3 || xywh[3] < 3) return show();
    write({boxes: taken(xywh), chosen: null});
  });
  return show;
}
