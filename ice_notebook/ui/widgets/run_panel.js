// @ts-check
// The run panel's page side. Above: pure functions and the store of lines. Below: the link to the kernel, one per model and page, and the
// views, of which there may be several. What a person selects stays in the view; the kernel is sent presses and questions, nothing else.

/**
 * @typedef {{rank: number, device: string, phase: string, note: string, said: string, pid: number | null}} Rank
 * @typedef {{rank: number, type?: string, text?: string, html?: string, size_bytes?: number, lost?: string}} Result
 * @typedef {{where: string, first: number, lines: string[], failing: number}} Excerpt
 * @typedef {{rank: number, device: string, headline: string, exit: string, at: number, after_s: number, is_communication: boolean,
 *   traceback?: string, excerpt?: Excerpt | null}} Failure
 * @typedef {{name: string, devices: string, world_size: number, phase: string, is_final: boolean, began_at: number, ended_at: number | null,
 *   attempts: number[], restarts: number, max_restarts: number, grace: number, folder: string, home: string,
 *   banner: {kind: string, text: string} | null, ranks: Rank[], results: Result[], failures: Failure[], ended_with_it: number[],
 *   cell_waits: boolean, acks: string[], problems: string[], rev: number, seq: number, now: number}} State
 * @typedef {{get: (name: string) => any, send: (content: any) => void, on: (name: string, f: any) => void, off: (name: string, f: any) => void}} Model
 * @typedef {{rank: number, n: number, text: string, gap: number}} Row a line, or how many are missing from `n` on
 * @typedef {{rows: number, at: (row: number) => Row, keyOf: (row: number) => number, rowOf: (key: number) => number}} Source
 */

const ROW = 16; // px; also the line height in the style sheet
const RING = 20000; // lines of a rank that a page keeps, and rows of the merged view
const CHANGEABLE = 50; // newest lines of a rank that the kernel may still change
const READ = 1000; // lines that one click on a gap brings back
const NOTE = '\x01'; // begins a line that the kernel side wrote itself
const HAND = 3; // seconds after a touch in which scrolling is a person's; a dragged scroll bar tells of its beginning only
const BEATS_MISSED = 10; // seconds without a sign of life until the kernel counts as gone; it sends one every second
const FIRST_ANSWER = 3; // seconds until a panel that hears nothing at all counts as a saved view
const MOST_PANES = 4; // beyond that two rows of each would be seen: ranks are merged
const LARGEST = 256e6; // bytes of a log that a page can hold to give it away as a file

// ---- lines --------------------------------------------------------------------------------------------------------------------------

/** The lines of one rank by number. What is missing between them is shown as one row that counts it. */
export class Lines {
  constructor() {
    /** @type {{first: number, lines: string[]}[]} ascending, apart from each other */
    this.runs = [];
    /** @type {number[]} the row at which each run begins */
    this.starts = [];
    this.rows = 0;
    this.extra = 0; // lines that were read back from the file
  }

  get end() {
    const last = this.runs[this.runs.length - 1];
    return last ? last.first + last.lines.length : 0;
  }

  /** The newest line that is not blank. */
  get last() {
    const { lines } = this.runs[this.runs.length - 1] || { lines: [] };
    return lines.slice(-20).filter((/** @type {string} */ line) => line[0] !== NOTE && plain(line).trim()).pop() || '';
  }

  /** Take lines under their numbers; what was known under these is replaced. @param {number} first @param {string[]} lines */
  put(first, lines) {
    if (!lines.length) return;
    const end = first + lines.length;
    const last = this.runs[this.runs.length - 1];
    if (last && first >= last.first && first <= last.first + last.lines.length && end >= last.first + last.lines.length) {
      last.lines.length = first - last.first;
      for (const line of lines) last.lines.push(line);
    } else {
      const kept = [];
      for (const run of this.runs) {
        const runEnd = run.first + run.lines.length;
        if (run.first < first) kept.push({ first: run.first, lines: run.lines.slice(0, first - run.first) });
        if (runEnd > end) kept.push({ first: Math.max(run.first, end), lines: run.lines.slice(Math.max(0, end - run.first)) });
      }
      kept.push({ first, lines: lines.slice() });
      kept.sort((a, b) => a.first - b.first);
      this.runs = [];
      for (const run of kept) {
        const before = this.runs[this.runs.length - 1];
        if (before && before.first + before.lines.length === run.first) before.lines = before.lines.concat(run.lines);
        else this.runs.push(run);
      }
    }
    this.trim();
  }

  trim() {
    // What was read back on request must not go at once because it is old.
    let surplus = this.runs.reduce((n, run) => n + run.lines.length, 0) - RING - this.extra;
    // A tenth more is kept before anything goes: dropping from the front of an array costs its length.
    if (surplus > RING / 10) {
      while (surplus > 0) {
        const run = this.runs[0];
        const gone = Math.min(surplus, run.lines.length);
        surplus -= gone;
        if (gone === run.lines.length) this.runs.shift();
        else this.runs[0] = { first: run.first + gone, lines: run.lines.slice(gone) };
      }
    }
    this.starts = [];
    let row = 0;
    let known = 0;
    for (const run of this.runs) {
      if (run.first > known) row++;
      this.starts.push(row);
      row += run.lines.length;
      known = run.first + run.lines.length;
    }
    this.rows = row;
  }

  /** What stands in a row: a line with its number, or how many are missing. @param {number} row */
  at(row) {
    let i = this.starts.length - 1;
    while (i > 0 && this.starts[i] > row) i--;
    if (i >= 0 && this.starts[i] <= row) {
      const inside = row - this.starts[i];
      const run = this.runs[i];
      if (inside < run.lines.length) return { n: run.first + inside, text: run.lines[inside], gap: 0 };
      i++;
    }
    const next = this.runs[Math.max(0, i)];
    const before = i > 0 ? this.runs[i - 1] : null;
    const from = before ? before.first + before.lines.length : 0;
    return { n: from, text: '', gap: next.first - from };
  }

  /** Whether a line is here. @param {number} n */
  has(n) {
    return this.runs.some(({ first, lines }) => n >= first && n < first + lines.length);
  }

  /** The row of a line number, or of the gap that it fell into. @param {number} n */
  rowOf(n) {
    let row = 0;
    for (let i = 0; i < this.runs.length && this.runs[i].first <= n; i++) {
      const { first, lines } = this.runs[i];
      row = this.starts[i] + Math.min(n - first, i + 1 < this.runs.length ? lines.length : lines.length - 1);
    }
    return row;
  }
}

/** The lines of one rank in a range of numbers, as rows of a pane. @param {number} rank @param {Lines} lines @param {number[]} range @returns {Source} */
const rankRows = (rank, lines, [from, to]) => {
  const first = lines.rows && from > 0 ? lines.rowOf(from) : 0;
  const rows = to < lines.end ? (to > from ? lines.rowOf(to) : first) : lines.rows;
  return {
    rows: Math.max(0, rows - first),
    at: (row) => ({ rank, ...lines.at(first + row) }),
    keyOf: (row) => lines.at(first + row).n,
    rowOf: (n) => Math.max(0, lines.rowOf(n) - first),
  };
};

// ---- text ---------------------------------------------------------------------------------------------------------------------------

/** @param {number} seconds */
export function clock(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  const parts = [Math.floor(s / 3600), Math.floor(s / 60) % 60, s % 60].slice(s < 3600 ? 1 : 0);
  return parts.map((n, i) => (i ? String(n).padStart(2, '0') : n)).join(':');
}

/** @param {number} n */
export function bytes(n) {
  if (n < 1000) return `${n} B`;
  for (const unit of ['kB', 'MB', 'GB']) {
    n /= 1000;
    if (n < 999.5 || unit === 'GB') return `${n < 10 ? n.toFixed(1) : Math.round(n)} ${unit}`;
  }
  return '';
}

/** @param {number} n */
const count = (n) => n.toLocaleString('en').replace(/,/g, '\u202f');
/** @param {number} n @param {string} word */
const many = (n, word) => `${count(n)} ${word}${n === 1 ? '' : 's'}`;
/** A line without colours and marks. @param {string} line */
export const plain = (line) => line.replace(/^[\r\x01]+|\x1b\[[\d;]*m/g, '');

/** How far the loops of a rank are: as words, and as a part of the whole where that is known. @param {any[][]} bars outermost first */
export function describeBars(bars) {
  let part = NaN;
  for (const [, n, total] of bars.slice().reverse()) if (total) part = Math.min(1, (n + (part || 0)) / total);
  const texts = bars.map(([what, n, total]) => `${what ? what + ': ' : ''}${count(n)}${total ? '/' + count(total) : ''}`);
  return { text: texts.join(' · ') + (part >= 0 ? ` · ${Math.floor(part * 100)} %` : ''), part };
}

/** What a bar that a rank draws itself says, of tqdm or rich: a part of the whole, or NaN. @param {string} line */
export function partOfLine(line) {
  const found = line[0] === '\r' && plain(line).match(/(\d{1,3})(?:\.\d+)?\s?%/);
  return found ? Math.min(1, Number(found[1]) / 100) : NaN;
}

/** The colour of a number of the 256-colour table above the 16 named ones. @param {number} n */
function tableColour(n) {
  if (n > 231) return `rgb(${Array(3).fill((n - 232) * 10 + 8)})`;
  const level = (/** @type {number} */ i) => (i ? i * 40 + 55 : 0);
  return `rgb(${level(Math.floor((n - 16) / 36))},${level(Math.floor((n - 16) / 6) % 6)},${level((n - 16) % 6)})`;
}

/** How the text after an SGR sequence is drawn. Each sequence says everything, nothing is inherited. @param {string} codes */
export function look(codes) {
  const numbers = codes.split(';').map(Number);
  const found = { flags: /** @type {number[]} */ ([]), fg: '', bg: '' };
  for (let i = 0; i < numbers.length; i++) {
    const n = numbers[i];
    if ((n === 38 || n === 48) && numbers[i + 1] === 5) {
      const c = numbers[i + 2];
      found[n === 38 ? 'fg' : 'bg'] = c < 16 ? `var(--c${c})` : tableColour(c);
      i += 2;
    } else if ((n === 38 || n === 48) && numbers[i + 1] === 2) {
      found[n === 38 ? 'fg' : 'bg'] = `rgb(${numbers.slice(i + 2, i + 5)})`;
      i += 4;
    } else if (n >= 30 && n < 38) found.fg = `var(--c${n - 30})`;
    else if (n >= 40 && n < 48) found.bg = `var(--c${n - 40})`;
    else if (n >= 90 && n < 98) found.fg = `var(--c${n - 82})`;
    else if (n >= 100 && n < 108) found.bg = `var(--c${n - 92})`;
    else if (n > 0 && n < 10) found.flags.push(n);
  }
  return found;
}

// ---- elements -----------------------------------------------------------------------------------------------------------------------

/** Milliseconds since the page was opened. */
const ticks = () => performance.now();

/** @param {DataView[]} buffers @returns {string[]} */
const textsOf = (buffers) => new TextDecoder().decode(buffers[0]).split('\n');

/** @param {string} tag @param {string} [name] @param {...(Node | string | null | Record<string, any>)} parts children and properties @returns {any} */
function el(tag, name, ...parts) {
  const node = document.createElement(tag);
  if (name) node.className = name;
  for (const part of parts) {
    if (part instanceof Node || typeof part === 'string') node.append(part);
    else if (part) Object.assign(node, part);
  }
  return node;
}

/** A button that says what it does to those who cannot see it. @param {string} name @param {string} text @param {string} title @param {(event: any) => void} act */
function button(name, text, title, act) {
  return el('button', name, text, { type: 'button', title, ariaLabel: title ? [text, title].filter(Boolean).join(': ') : null, onclick: act });
}

/** Set what differs, so that selections and focus survive. @param {any} node @param {Record<string, any>} properties */
function set(node, properties) {
  for (const [name, value] of Object.entries(properties)) if (node[name] !== value) node[name] = value;
}

/** What the Jupyter server tells its pages. @returns {Record<string, string>} */
function jupyter() {
  const node = document.getElementById('jupyter-config-data');
  const config = node ? JSON.parse(node.textContent || '{}') : {};
  return { ...config, baseUrl: config.baseUrl || document.body.dataset.baseUrl || '/' };
}

/** The address under which the notebook server opens a file, nothing when it serves no such file. @param {string} path @param {string} home */
function addressOf(path, home) {
  const { serverRoot, baseUrl, appUrl } = jupyter();
  const root = serverRoot && serverRoot.replace(/^~/, home).replace(/\/*$/, '/');
  if (!root || !path.startsWith(root)) return '';
  const place = path.slice(root.length).split('/').map(encodeURIComponent).join('/');
  return `${baseUrl}${/lab/.test(appUrl || '') ? 'lab/tree' : 'edit'}/${place}`;
}

const PLACES = /(https?:\/\/[^\s'"<>`]*[^\s'"<>`.,;:!?)\]}])|File "([^"]+)", line \d+/g;

/** Text with what is searched for marked. @param {string} text @param {string} query in small letters @returns {(Node | string)[]} */
function marked(text, query) {
  const parts = [];
  const small = query ? text.toLowerCase() : '';
  let from = 0;
  for (let at; query && (at = small.indexOf(query, from)) >= 0; from = at + query.length) {
    parts.push(text.slice(from, at), el('mark', '', text.slice(at, at + query.length)));
  }
  return [...parts, text.slice(from)];
}

/** Text with links as well. @param {string} text @param {string} query @param {string} home */
function linked(text, query, home) {
  const parts = [];
  let from = 0;
  for (const place of text.matchAll(PLACES)) {
    const href = place[1] || addressOf(place[2], home);
    if (!href) continue;
    const link = el('a', '', ...marked(place[0], query), { href, target: '_blank', rel: 'noopener' });
    parts.push(...marked(text.slice(from, place.index), query), link);
    from = (place.index || 0) + place[0].length;
  }
  return [...parts, ...marked(text.slice(from), query)];
}

/**
 * A line as text nodes and coloured spans. Nothing of it is read as HTML.
 * @param {string} line @param {string} [query] @param {string} [home]
 */
export function drawLine(line, query = '', home = '') {
  const row = document.createElement('div');
  if (line[0] === NOTE) {
    row.className = 'ice-note';
    row.textContent = line.slice(1);
    return row;
  }
  if (line[0] === '\r') line = line.slice(1); // drawn over: a progress bar
  const parts = line.split(/\x1b\[([\d;]*)m/);
  row.append(...linked(parts[0], query, home));
  for (let i = 1; i < parts.length; i += 2) {
    if (!parts[i + 1]) continue;
    const { flags, fg, bg } = look(parts[i]);
    const text = linked(parts[i + 1], query, home);
    if (!flags.length && !fg && !bg) {
      row.append(...text);
      continue;
    }
    const span = el('span', flags.map((n) => `ice-f${n}`).join(' '), ...text);
    const [front, back] = flags.includes(7) ? [bg || 'var(--code)', fg || 'var(--fg)'] : [fg, bg];
    span.style.color = front;
    span.style.background = back;
    row.append(span);
  }
  return row;
}

/**
 * A value's own HTML, in a frame that runs no script, loads nothing and cannot touch the page.
 * @param {string} html @param {string} label
 */
function frame(html, label) {
  const node = el('iframe', 'ice-frame');
  // Without `allow-scripts` nothing in it runs; `allow-same-origin` lets this page, and only it, measure the height.
  node.sandbox = 'allow-same-origin';
  node.title = label;
  node.addEventListener('load', () => {
    const inside = node.contentDocument;
    if (!inside) return;
    const style = getComputedStyle(node);
    inside.body.style.color = style.color;
    inside.body.style.font = style.font;
    node.style.height = `${Math.min(400, inside.documentElement.scrollHeight + 2)}px`;
  });
  node.srcdoc =
    `<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">` +
    `<style>body{margin:0;background:transparent}table{border-collapse:collapse}th,td{padding:2px 8px;text-align:right;` +
    `border-bottom:1px solid #8885}pre{margin:0}</style>${html}`;
  return node;
}

/** @param {Result} result @param {Rank | undefined} rank */
function drawResult(result, rank) {
  const value = result.lost
    ? el('div', 'ice-lost', result.lost)
    : result.html
      ? frame(result.html, `value of rank ${result.rank}`)
      : el('pre', 'ice-value', result.text || '');
  return el(
    'tr',
    '',
    el('th', '', `rank ${result.rank}`, rank ? el('small', '', rank.device) : null),
    el('td', 'ice-wide', value),
    el('td', '', result.type || '', result.lost ? null : el('small', '', bytes(result.size_bytes || 0))),
    el('td', '', result.lost ? '' : el('code', '', `run.results[${result.rank}]`)),
  );
}

/** @param {State} state */
function drawResults(state) {
  const head = ['rank', 'value', 'type', 'in the notebook'].map((word) => el('th', '', word));
  const rows = state.results.map((result) => drawResult(result, state.ranks.find((rank) => rank.rank === result.rank)));
  return [el('table', 'ice-results', el('thead', '', el('tr', '', ...head)), el('tbody', '', ...rows))];
}

/** @param {State} state */
function drawFailure(state) {
  const [root, ...others] = state.failures;
  if (!root) return [];
  const { excerpt } = root;
  const facts = [
    `rank ${root.rank} (${root.device})`,
    excerpt ? `${excerpt.where}, line ${excerpt.failing}` : '',
    root.at ? `${new Date(root.at * 1000).toLocaleTimeString()}, ${clock(root.after_s)} after its start` : '',
    state.attempts.length > 1 ? `attempt ${state.attempts.length}` : '',
    root.exit,
  ];
  const box = el('div', 'ice-failure', el('h4', '', root.headline), el('p', '', facts.filter(Boolean).join(' · ')));
  if (excerpt) {
    const { first, lines, failing } = excerpt;
    const width = String(first + lines.length - 1).length;
    const rows = lines.map((line, i) => {
      const isHit = first + i === failing;
      const number = el('span', 'ice-number', (isHit ? '▸ ' : '  ') + String(first + i).padStart(width));
      return el('div', isHit ? 'ice-hit' : '', number, line);
    });
    box.append(el('div', 'ice-code', ...rows));
  }
  if (state.ended_with_it.length) {
    const ranks = state.ended_with_it.join(', ');
    box.append(el('p', '', `Stopped because of it: rank${state.ended_with_it.length > 1 ? 's' : ''} ${ranks}.`));
  }
  if (root.traceback) {
    const more = el('details', '', el('summary', '', `Traceback of rank ${root.rank}`), el('pre', '', ...linked(root.traceback, '', state.home)));
    more.open = true;
    box.append(more);
  }
  if (others.length) {
    const rows = others.map((other) =>
      el('li', '', `rank ${other.rank} (${other.device}): ${other.headline}`, other.exit ? el('small', '', other.exit) : null),
    );
    box.append(el('h5', '', 'Other ranks'), el('ul', '', ...rows));
  }
  box.append(el('p', '', 'Full output of every rank: ', el('code', 'ice-path', state.folder)));
  return [box];
}

// ---- a pane: the rows of a source that are in sight ------------------------------------------------------------------------------------

class Pane {
  /** @param {View} view @param {string} title */
  constructor(view, title) {
    this.view = view;
    this.source = /** @type {Source} */ ({ rows: 0, keyOf: () => 0, rowOf: () => 0 });
    this.follows = true;
    this.anchor = 0; // the key of the topmost row while it does not follow
    this.top = 0; // where it was scrolled to when it was drawn
    this.touchedAt = -Infinity;
    this.drawn = '';
    this.query = this.counted = '';
    /** @type {number[]} keys of the rows that hold what is searched for */
    this.hits = [];
    this.rows = el('div', 'ice-rows');
    this.pad = el('div', 'ice-pad', this.rows);
    this.box = el('div', 'ice-scroll', this.pad, { tabIndex: 0, role: 'log', ariaLabel: `Output of ${title}`, ariaLive: 'off' });
    this.empty = el('div', 'ice-empty');
    this.jump = button('ice-jump', '↓ newest', 'Follow the output', () => {
      this.follows = true;
      this.draw();
    });
    this.node = el('section', 'ice-pane', el('div', 'ice-head', title), el('div', 'ice-body', this.box, this.empty, this.jump));
    for (const kind of ['wheel', 'touchmove', 'pointerdown']) this.box.addEventListener(kind, () => this.touched(), { passive: true });
    this.box.addEventListener('scroll', () => this.scrolled(), { passive: true });
    this.rows.addEventListener('click', (/** @type {any} */ event) => {
      const place = event.target.closest('[data-gap],[data-hit]');
      if (place) view.pick(JSON.parse(place.dataset.gap || place.dataset.hit), !!place.dataset.gap);
    });
  }

  touched() {
    this.touchedAt = ticks();
  }

  scrolled() {
    const { scrollTop, clientHeight, scrollHeight } = this.box;
    // The very end is the wish to follow; upwards from there, however little, is the wish to read. Without a hand on it, it was the
    // browser that moved it, because the pane changed its height.
    if (scrollTop + clientHeight >= scrollHeight - 1) this.follows = true;
    else if (scrollTop < this.top && ticks() - this.touchedAt < HAND * 1000) this.follows = false;
    this.top = scrollTop;
    if (this.source.rows) this.anchor = this.source.keyOf(Math.min(this.source.rows - 1, Math.floor(scrollTop / ROW)));
    this.draw();
  }

  /** Bring a row into sight and stay there. @param {number} key */
  show(key) {
    this.follows = false;
    this.anchor = key;
    this.box.scrollTop = this.top = Math.max(0, this.source.rowOf(key) - 3) * ROW;
    if (this.source.rows) this.anchor = this.source.keyOf(Math.min(this.source.rows - 1, Math.floor(this.top / ROW)));
    this.draw();
  }

  /** @param {string} query @param {string} version */
  count(query, version) {
    if (this.counted === query + version) return;
    this.counted = query + version;
    this.hits = [];
    for (let i = 0; query && i < this.source.rows; i++) {
      const row = this.source.at(i);
      if (!row.gap && plain(row.text).toLowerCase().includes(query)) this.hits.push(this.source.keyOf(i));
    }
  }

  /** Draw the rows in sight. */
  draw() {
    const { rows, at } = this.source;
    set(this.pad.style, { height: `${rows * ROW}px` });
    set(this.empty, { hidden: rows > 0 });
    const sight = this.box.clientHeight;
    if (!sight) return;
    if (this.follows) this.box.scrollTop = rows * ROW;
    else {
      const row = this.source.rowOf(this.anchor);
      if (Math.floor(this.box.scrollTop / ROW) !== row) this.box.scrollTop = row * ROW + (this.box.scrollTop % ROW);
    }
    this.top = this.box.scrollTop;
    set(this.jump, { hidden: this.follows || rows * ROW <= sight });
    const first = Math.max(0, Math.floor(this.top / ROW) - 4);
    const end = Math.min(rows, first + Math.ceil(sight / ROW) + 8);
    const shown = [];
    for (let i = first; i < end; i++) shown.push(at(i));
    const key = `${first}|${this.query}|${shown.map((row) => row.rank + row.gap + row.text).join('\n')}`;
    if (key === this.drawn) return;
    this.drawn = key;
    this.rows.style.top = `${first * ROW}px`;
    this.rows.replaceChildren(...shown.map((row) => this.drawRow(row)));
  }

  /** @param {Row} row */
  drawRow({ rank, n, text, gap }) {
    const skipped = `… ${many(gap, 'line')} not shown`;
    const line = gap
      ? el('div', 'ice-note', this.view.isLive ? button('ice-gap', skipped + ': read them', '', () => {}) : skipped + '; the log file has them')
      : drawLine(text, this.query, this.view.link.state.home);
    if (gap) line.dataset.gap = JSON.stringify([rank, n, gap]);
    if (this.source === this.view.found) line.dataset.hit = JSON.stringify([rank, n]);
    if (!this.view.isMerged) return line;
    line.prepend(el('span', 'ice-gutter', String(rank)));
    line.firstChild.style.setProperty('--hue', `${(rank * 47 + 210) % 360}`);
    return line;
  }
}

// ---- the link to the kernel ---------------------------------------------------------------------------------------------------------

/** Send the notebook's own interrupt through the Jupyter server. @param {string} kernel @returns {Promise<boolean>} */
async function interrupt(kernel) {
  const { baseUrl, token } = jupyter();
  /** @type {Record<string, string>} */
  const headers = {};
  const cookie = document.cookie.match(/(?:^|; )_xsrf=([^;]*)/);
  if (cookie) headers['X-XSRFToken'] = cookie[1];
  if (token) headers.Authorization = `token ${token}`;
  try {
    return (await fetch(`${baseUrl}api/kernels/${kernel}/interrupt`, { method: 'POST', headers })).ok;
  } catch {
    return false;
  }
}

class Link {
  /** @param {Model} model */
  constructor(model) {
    this.model = model;
    this.tab = Math.random().toString(36).slice(2);
    /** @type {Map<number, Lines>} */
    this.lines = new Map();
    /** @type {{rank: number, n: number}[]} the lines of all ranks in the order in which they came */
    this.order = [];
    this.dropped = 0; // rows that the order has lost at its beginning
    /** @type {Record<number, number>} up to where each rank's lines are in the order */
    this.ordered = {};
    /** @type {Record<string, Record<string, number>>} first lines by attempt and rank */
    this.starts = {};
    /** @type {Record<string, any[][]>} bars by rank */
    this.progress = {};
    this.version = 0; // counts changes of lines
    /** @type {Record<number, number>} up to where each rank's lines came without a loss */
    this.solid = {};
    this.seq = this.tries = this.clockNow = 0;
    this.lacks = true;
    this.hasHeard = false;
    this.isCut = false; // the front end has said that the kernel is gone
    this.since = this.heardAt = this.clockAt = ticks();
    /** @type {{op: string, nonce: string, at: number, isTaken: boolean, isForced: boolean, failed: boolean} | null} */
    this.pressed = null;
    /** @type {Set<() => void>} */
    this.views = new Set();
    /** @type {any[]} what views that were taken down had chosen; the next one goes on with it */
    this.kept = [];
    /** @type {(message: any, buffers: DataView[]) => void} */
    this.answer = () => {};
    this.timer = this.asking = this.pressing = 0;
    this.handlers = {
      'msg:custom': (/** @type {any} */ message, /** @type {DataView[]} */ buffers) => this.message(message, buffers || []),
      'change:state': () => this.stated(),
      comm_live_update: () => this.cut(),
    };
    for (const [name, f] of Object.entries(this.handlers)) model.on(name, f);
    this.setClock(this.state.now, true);
    this.ask();
    this.watch();
  }

  close() {
    for (const [name, f] of Object.entries(this.handlers)) this.model.off(name, f);
    for (const timer of [this.timer, this.asking, this.pressing]) clearTimeout(timer);
  }

  /** @returns {State} */
  get state() {
    return this.model.get('state');
  }

  /** `saved` without a kernel from the start, `gone` when there was one, else `live`. */
  get condition() {
    const now = ticks();
    if (!this.hasHeard) return this.isCut || now - this.since > FIRST_ANSWER * 1000 ? 'saved' : 'live';
    if (this.state.is_final) return 'live';
    return this.isCut || now - this.heardAt > BEATS_MISSED * 1000 ? 'gone' : 'live';
  }

  get elapsed() {
    const state = this.state;
    if (!state.began_at) return 0;
    if (state.ended_at) return state.ended_at - state.began_at;
    if (this.condition !== 'live') return (this.hasHeard ? this.clockNow : state.now) - state.began_at;
    return this.clockNow - state.began_at + (ticks() - this.clockAt) / 1000;
  }

  /** The kernel's clock: the page's own may be another machine's. @param {number} now @param {boolean} [isOld] a stored time */
  setClock(now, isOld = false) {
    // A model that was restored carries the time of its last change; until a beat comes, the page's clock is the better guess.
    this.clockNow = isOld ? Math.max(now || 0, Math.min(Date.now() / 1000, (now || 0) + 30 * 86400)) : now;
    this.clockAt = ticks();
  }

  /** @param {number} now */
  heard(now) {
    this.hasHeard = true;
    this.isCut = false;
    this.heardAt = ticks();
    this.setClock(now);
  }

  watch() {
    this.timer = window.setTimeout(() => {
      this.changed();
      if (!this.state.is_final || (!this.hasHeard && this.condition === 'live')) this.watch();
    }, 500);
  }

  changed() {
    for (const view of this.views) view();
  }

  stated() {
    const state = this.state;
    this.heard(state.now);
    if (state.seq > this.seq) this.lack();
    if (state.is_final) this.model.send({ kind: 'seen', rev: state.rev });
    if (this.pressed && (state.is_final || state.acks.includes(this.pressed.nonce))) this.pressed.isTaken = true;
    this.changed();
  }

  /** @param {any} message @param {DataView[]} buffers */
  message(message, buffers) {
    const { kind, seq, tab } = message;
    this.heard(message.now);
    if (kind === 'beat') {
      if (seq > this.seq || message.rev > this.state.rev) this.lack();
    } else if (kind === 'output' || kind === 'replay') {
      this.put(message, buffers);
      this.starts = message.starts || this.starts;
      this.progress = message.progress || this.progress;
      if (kind === 'output') {
        if (seq > this.seq + 1) this.lack();
        this.seq = Math.max(this.seq, seq);
      } else if (seq >= this.seq && (tab === this.tab || !tab)) {
        this.seq = seq;
        this.lacks = false;
      }
      if (!this.lacks) for (const [rank, lines] of this.lines) this.solid[rank] = lines.end;
    } else if (tab === this.tab) {
      if (kind === 'lines') this.put(message, buffers);
      else this.answer(message, buffers);
    }
    this.changed();
  }

  /** Take lines. @param {any} message @param {DataView[]} buffers */
  put({ kind, parts }, buffers) {
    const texts = textsOf(buffers);
    // The first one has all, and in its order; what came before it was a part.
    if (kind === 'replay' && !Object.keys(this.solid)[0]) [this.order, this.ordered] = [[], {}];
    for (const [rank, first, n] of parts) {
      const lines = this.of(rank);
      if (kind === 'lines') lines.extra += n;
      lines.put(first, texts.splice(0, n));
      const known = this.ordered[rank] || 0;
      if (kind !== 'output' && first < known) this.insert(rank, first, Math.min(known, first + n));
      if (first + n <= known) continue;
      // What is missing before them is a row as well.
      if (first > known) this.order.push({ rank, n: known });
      for (let k = Math.max(first, known); k < first + n; k++) this.order.push({ rank, n: k });
      this.ordered[rank] = first + n;
    }
    if (this.order.length > RING * 1.1 + [...this.lines.values()].reduce((sum, lines) => sum + lines.extra, 0)) {
      this.dropped += this.order.length - RING;
      this.order = this.order.slice(-RING);
    }
    this.version++;
  }

  /** Give lines that were missing their rows in the order. @param {number} rank @param {number} first @param {number} end */
  insert(rank, first, end) {
    const known = new Set(this.order.filter((row) => row.rank === rank).map((row) => row.n));
    const rows = [];
    if (end < (this.ordered[rank] || 0) && !this.of(rank).has(end)) end++; // what is still missing after them is a row as well
    for (let n = first; n < end; n++) if (!known.has(n)) rows.push({ rank, n });
    const at = this.order.findIndex((row) => rows.length && row.rank === rank && row.n > rows[0].n);
    if (at >= 0) this.order.splice(at, 0, ...rows);
  }

  /** @param {number} rank */
  of(rank) {
    let lines = this.lines.get(rank);
    if (!lines) this.lines.set(rank, (lines = new Lines()));
    return lines;
  }

  lack() {
    if (this.lacks) return;
    this.lacks = true;
    this.tries = 0;
    this.ask();
  }

  /** Ask for what is missing until it is here. The first messages of a page may wait for the running cell, so it asks again. */
  ask() {
    clearTimeout(this.asking);
    if (!this.lacks || this.isCut) return;
    /** @type {Record<string, number>} */
    const have = {};
    for (const [rank, end] of Object.entries(this.solid)) have[rank] = Math.max(0, end - CHANGEABLE);
    this.send('hello', { rev: this.hasHeard ? this.state.rev : 0, have });
    this.asking = window.setTimeout(() => this.ask(), 200 * 2 ** Math.min(this.tries++, 6));
  }

  /** @param {string} kind @param {Record<string, any>} content */
  send(kind, content) {
    this.model.send({ kind, tab: this.tab, ...content });
  }

  /** The kernel was restarted or left. Should it be heard again, it is back. */
  cut() {
    this.isCut = true;
    this.changed();
  }

  /** @param {string} op stop | kill */
  press(op) {
    const nonce = this.tab + Math.random().toString(36).slice(2);
    this.pressed = { op, nonce, at: ticks(), isTaken: false, isForced: false, failed: false };
    this.push();
  }

  /** Repeat the press until the kernel has taken it up; after 0.7 s try the server's interrupt, once. */
  push() {
    clearTimeout(this.pressing);
    const press = this.pressed;
    if (!press || this.state.is_final) return this.changed();
    const waited = ticks() - press.at;
    const isUnderWay = press.isTaken || (press.op === 'stop' && this.state.phase === 'stopping');
    if (!isUnderWay) {
      this.send('press', { op: press.op, nonce: press.nonce });
      if (waited > 700 && !press.isForced && this.state.cell_waits && this.model.get('kernel_id')) {
        press.isForced = true;
        interrupt(this.model.get('kernel_id')).then((ok) => {
          press.failed = !ok;
          this.changed();
        });
      }
    }
    if (!isUnderWay || waited < 3500) this.pressing = window.setTimeout(() => this.push(), waited < 10000 ? 300 : 2000);
    this.changed();
  }

  /** What the Stop button says and does. @returns {{text: string, op: string, title: string, off: boolean}} */
  get button() {
    const { phase, grace } = this.state;
    const press = this.pressed;
    const age = press ? ticks() - press.at : Infinity;
    if (this.condition !== 'live') return { text: 'Stop', op: '', title: 'No kernel could stop it', off: true };
    if (press && press.op === 'kill' && (age < 3000 || !press.isTaken))
      return { text: 'Killing…', op: '', title: 'Processes are being ended', off: true };
    // A double click is one press.
    if (press && age < 600) return { text: 'Stopping…', op: '', title: 'Ranks are asked to stop', off: true };
    if (press || phase === 'stopping')
      return { text: 'Kill now', op: 'kill', title: `Ranks have up to ${grace} s to finish. Press to end them at once`, off: false };
    return { text: 'Stop', op: 'stop', title: `Stop all ranks; they have up to ${grace} s to finish`, off: false };
  }

  /** What went wrong on the way between page and kernel. @returns {string} */
  get trouble() {
    if (this.condition === 'saved') return 'Saved view: no kernel answers. This was known when the notebook was saved.';
    if (this.condition === 'gone') return 'The kernel is gone or was restarted: this was the last of the run.';
    const press = this.pressed;
    if (press && !press.isTaken && !this.state.is_final && this.state.phase !== 'stopping' && ticks() - press.at > 3000) {
      return press.isForced && !press.failed
        ? 'The kernel was interrupted and has not answered.'
        : 'The kernel is busy and has not taken the Stop; it is being repeated. The notebook’s own interrupt button may help.';
    }
    return '';
  }
}

// ---- the view -----------------------------------------------------------------------------------------------------------------------

class View {
  /** @param {Link} link @param {HTMLElement} outer */
  constructor(link, outer) {
    this.link = link;
    /** What a person chose. `ranks` that are shown, all when empty; `attempt` -1 for all. */
    this.chosen = link.kept.pop() || { tab: '', ranks: /** @type {number[]} */ ([]), mode: '', query: '', attempt: -1, height: '' };
    /** @type {Map<number, Pane>} by rank, -1 for the merged one */
    this.panes = new Map();
    /** @type {Map<number, any>} */
    this.chips = new Map();
    /** @type {Source | null} what a search of the files gave */
    this.found = null;
    this.findings = this.notice = '';
    this.at = -1; // the hit that was gone to
    this.wanted = [0, -1]; // rank and number of a line that is shown as soon as it is here
    this.due = 0;
    this.build();
    // A notebook's shortcuts cut, delete and change cells. None of them is meant for the focused cell while something here has the focus.
    // Notebook 7 hears keys at the document, on their way down; the window is before it. What the browser itself does with a key stays.
    this.keys = (/** @type {any} */ event) => {
      if (!this.root.contains(event.target)) return;
      event.stopPropagation();
      if (event.target === this.search && event.key === 'Enter') this.step(event.shiftKey ? -1 : 1);
      for (const pane of this.panes.values()) if (pane.box === event.target) pane.touched();
    };
    window.addEventListener('keydown', this.keys, true);
    this.root.addEventListener('click', (/** @type {MouseEvent} */ event) => {
      // nbclassic takes care of focused widgets itself, and takes a lost focus amiss.
      const isClassic = !!(/** @type {any} */ (window).Jupyter?.notebook);
      const focused = document.activeElement;
      if (event.detail > 0 && !isClassic && focused instanceof HTMLButtonElement && this.root.contains(focused)) focused.blur();
    });
    // Panes far down in the list are drawn when they come into sight.
    this.logs.addEventListener('scroll', () => this.drawPanes(), { passive: true });
    this.sizes = new ResizeObserver(() => this.ask());
    this.sizes.observe(this.logs);
    // Frames do not inherit the theme. Its style sheet may come a little after its name.
    this.theme = new MutationObserver(() => [0, 500].forEach((pause) => setTimeout(() => this.ask(), pause)));
    this.theme.observe(document.body, { attributes: true, attributeFilter: ['data-jp-theme-name', 'data-vscode-theme-id', 'class'] });
    outer.append(this.root);
    link.views.add((this.wake = () => this.ask()));
    this.draw();
  }

  build() {
    const { link, chosen } = this;
    const redraw = (/** @type {Record<string, any>} */ change) => {
      Object.assign(chosen, change);
      this.found = null;
      this.draw();
    };
    this.state = el('span', 'ice-chip', { role: 'status' });
    this.name = el('span', 'ice-name');
    this.facts = el('span', 'ice-facts');
    this.time = el('b');
    this.restarts = el('b');
    this.restartsBox = el('span', 'ice-fact', 'restarts ', this.restarts);
    this.stop = button('ice-stop', 'Stop', '', () => !link.button.off && link.press(link.button.op));
    this.banners = ['', ' ice-trouble', ' ice-problem', ' ice-notice'].map((name) => el('div', 'ice-banner' + name, { role: 'status' }));
    this.strip = el('div', 'ice-strip', { role: 'group', ariaLabel: 'Ranks whose output is shown' });
    this.badges = { Results: el('span', 'ice-badge'), Failure: el('span', 'ice-badge ice-bad', '!') };
    /** @type {Record<string, any>} */
    this.tabs = {};
    const tabs = el('div', 'ice-tablist', { role: 'tablist' });
    for (const name of ['Logs', 'Results', 'Failure']) {
      const tab = button('ice-tab', name, '', () => redraw({ tab: name }));
      tab.append(/** @type {any} */ (this.badges)[name] || '');
      tabs.append((this.tabs[name] = Object.assign(tab, { role: 'tab' })));
    }
    const onchange = () => redraw({ attempt: Number(this.attempts.value) });
    this.attempts = el('select', 'ice-attempts', { ariaLabel: 'Attempt whose output is shown', onchange });
    const search = { type: 'search', placeholder: 'search…', ariaLabel: 'Search the output', value: chosen.query };
    this.search = el('input', 'ice-search', search, {
      oninput: () => {
        this.at = -1;
        redraw({ query: this.search.value });
      },
    });
    this.hits = button('ice-hits', '', 'Next hit', () => this.step(1));
    this.files = button('ice-files', 'whole files', 'Search the whole log files', () => this.searchFiles());
    this.modes = ['grid', 'merged'].map((mode) => button('ice-mode', mode, mode === 'grid' ? 'Show a pane for each rank' : 'Show all ranks in one list', () => redraw({ mode })));
    this.copy = button('ice-copy', 'copy', 'Copy the output that is shown', () => this.copyShown());
    this.download = button('ice-download', '↓ log', 'Download the log files of these ranks', () => this.downloadShown());
    this.tools = el('div', 'ice-tools', this.attempts, this.search, this.hits, this.files, el('span', 'ice-modes', ...this.modes), this.copy, this.download);
    [this.logs, this.results, this.failure] = ['panes', 'page', 'page'].map((name) => el('div', 'ice-' + name, { role: 'tabpanel' }));
    this.logs.style.height = chosen.height;
    const what = el('span', 'ice-what', this.name, this.facts);
    const header = el('div', 'ice-header', this.state, what, el('span', 'ice-fact', 'elapsed ', this.time), this.restartsBox, this.stop);
    this.root = el('div', 'ice', header, ...this.banners, this.strip, el('div', 'ice-tabs', tabs, this.tools), this.logs, this.results, this.failure);
  }

  close() {
    window.removeEventListener('keydown', this.keys, true);
    this.chosen.height = this.logs.style.height;
    this.link.kept.push(this.chosen);
    this.link.views.delete(this.wake);
    this.sizes.disconnect();
    this.theme.disconnect();
    cancelAnimationFrame(this.due);
    this.root.remove();
  }

  /** Draw soon, once. A page in the background has no frames; it draws when it comes back. */
  ask() {
    if (!this.due) {
      this.due = requestAnimationFrame(() => {
        this.due = 0;
        this.draw();
      });
    }
  }

  get isLive() {
    return this.link.condition === 'live' && this.link.hasHeard;
  }

  /** @returns {number[]} the ranks that are shown */
  get shown() {
    const all = this.link.state.ranks.map(({ rank }) => rank);
    const some = all.filter((rank) => this.chosen.ranks.includes(rank));
    return some.length ? some : all;
  }

  get isMerged() {
    const { shown, chosen } = this;
    return !!this.found || (shown.length > 1 && (chosen.mode ? chosen.mode === 'merged' : shown.length > MOST_PANES));
  }

  /** The numbers of the lines that are shown of a rank. @param {number} rank @returns {number[]} */
  rangeOf(rank) {
    const { starts } = this.link;
    const from = starts[this.chosen.attempt]?.[rank];
    if (this.chosen.attempt < 0) return [0, Infinity];
    if (from === undefined) return [0, 0];
    const later = Object.entries(starts).filter(([attempt, first]) => Number(attempt) > this.chosen.attempt && rank in first);
    return [from, Math.min(...later.map(([, first]) => first[rank] - 1))];
  }

  /** @returns {Source} */
  mergedRows() {
    const { order, dropped } = this.link;
    const shown = new Map(this.shown.map((rank) => [rank, this.rangeOf(rank)]));
    const isAll = this.chosen.attempt < 0 && shown.size === this.link.state.ranks.length;
    const rows = isAll ? order : order.filter(({ rank, n }) => shown.has(rank) && n >= (shown.get(rank) || [])[0] && n < (shown.get(rank) || [])[1]);
    return {
      rows: rows.length,
      at: (row) => {
        const lines = this.link.of(rows[row].rank);
        return { rank: rows[row].rank, ...lines.at(lines.rowOf(rows[row].n)) };
      },
      keyOf: (row) => row + (isAll ? dropped : 0),
      rowOf: (key) => Math.max(0, Math.min(rows.length - 1, key - (isAll ? dropped : 0))),
    };
  }

  draw() {
    const { link } = this;
    const { state, condition, trouble, button: stop } = link;
    const problem = state.problems.length ? `The panel itself failed, the run goes on: ${state.problems.join(' · ')}` : '';
    set(this.root, { className: `ice ice-phase-${state.phase} ${condition === 'live' ? 'ice-live' : 'ice-dead'}` });
    set(this.state, { textContent: state.phase });
    set(this.name, { textContent: state.name, title: state.name });
    set(this.facts, { textContent: `${many(state.world_size, 'rank')} · ${state.devices}` });
    set(this.time, { textContent: clock(link.elapsed) });
    set(this.restartsBox, { hidden: !state.max_restarts && !state.restarts });
    set(this.restarts, { textContent: `${state.restarts}/${state.max_restarts}` });
    set(this.stop, { hidden: state.is_final, disabled: stop.off, title: stop.title, textContent: stop.text, ariaLabel: stop.text });
    [state.banner?.text || '', trouble, problem, this.notice].forEach((text, i) => set(this.banners[i], { hidden: !text, textContent: text }));
    set(this.banners[0], { className: `ice-banner ice-${state.banner?.kind}` });
    this.drawChips(state);
    this.drawTabs(state);
  }

  /** @param {State} state */
  drawChips(state) {
    const known = state.ranks.map(({ rank }) => rank);
    for (const [rank, chip] of this.chips) if (!known.includes(rank) && this.chips.delete(rank)) chip.node.remove();
    for (const rank of state.ranks) {
      const chip = this.chips.get(rank.rank) || this.addChip(rank.rank);
      const { last } = this.link.of(rank.rank);
      const bars = this.link.progress[rank.rank];
      let { text, part } = describeBars(bars || []);
      // Once all that was counted is done, what the rank has printed since says more.
      if (last && (!bars || part >= 1)) {
        text = plain(last);
        if (partOfLine(last) >= 0) part = partOfLine(last);
      }
      const isOn = this.chosen.ranks.includes(rank.rank);
      const phase = rank.phase + (rank.note ? ` · ${rank.note}` : '');
      set(chip.node, { className: `ice-rank ice-is-${rank.phase}`, ariaPressed: String(isOn) });
      set(chip.node, { title: `rank ${rank.rank} on ${rank.device}${rank.pid ? `, pid ${rank.pid}` : ''}: ${phase}` });
      set(chip.device, { textContent: rank.device });
      set(chip.phase, { textContent: phase });
      set(chip.line, { textContent: rank.said || text.trim() || '\xa0' });
      set(chip.bar, { hidden: !(part >= 0) });
      set(chip.bar.style, { width: `${(part || 0) * 100}%` });
    }
    set(this.strip, { className: `ice-strip${known.length > 16 ? ' ice-dense' : ''}` });
  }

  /** @param {number} rank */
  addChip(rank) {
    const [device, phase, line, bar] = ['device', 'phase', 'last', 'bar'].map((name) => el('span', `ice-${name}`));
    const choose = (/** @type {MouseEvent} */ event) => {
      const { ranks } = this.chosen;
      if (event.detail === 2) this.chosen.ranks = [rank];
      else this.chosen.ranks = ranks.includes(rank) ? ranks.filter((/** @type {number} */ one) => one !== rank) : [...ranks, rank];
      this.found = null;
      this.draw();
    };
    const node = button('ice-rank', '', '', choose);
    node.append(el('span', 'ice-top', el('b', '', `rank ${rank}`), device, phase), line, bar);
    const chip = { node, device, phase, line, bar };
    this.chips.set(rank, chip);
    this.strip.append(node);
    return chip;
  }

  /** @param {State} state */
  drawTabs(state) {
    let hasOutput = this.link.seq > 0 || state.seq > 0;
    for (const lines of this.link.lines.values()) hasOutput = hasOutput || lines.rows > 0;
    const isFailed = state.is_final && state.failures.length > 0;
    const open = this.chosen.tab || (isFailed ? 'Failure' : state.is_final && !hasOutput && state.results.length ? 'Results' : 'Logs');
    set(this.tabs.Results, { hidden: !state.results.length });
    set(this.tabs.Failure, { hidden: !state.failures.length });
    set(this.badges.Results, { textContent: String(state.results.length) });
    for (const [name, tab] of Object.entries(this.tabs)) set(tab, { ariaSelected: String(name === open) });
    const pages = { Logs: [this.tools, this.logs], Results: [this.results], Failure: [this.failure] };
    for (const [name, nodes] of Object.entries(pages)) for (const node of nodes) set(node, { hidden: open !== name });
    this.fill(this.results, getComputedStyle(this.root).color + JSON.stringify(state.results), () => drawResults(state));
    this.fill(this.failure, JSON.stringify(state.failures) + state.ended_with_it, () => drawFailure(state));
    if (open === 'Logs') this.drawLogs(state);
  }

  /** Draw a page that is seen and whose content changed. @param {any} page @param {string} key @param {() => Node[]} draw */
  fill(page, key, draw) {
    if (page.hidden || page.key === key) return;
    page.key = key;
    page.replaceChildren(...draw());
  }

  /** @param {State} state */
  drawLogs(state) {
    const { link, isMerged, shown, chosen } = this;
    const wanted = isMerged ? [-1] : shown;
    for (const [key, pane] of this.panes) if (!wanted.includes(key) && this.panes.delete(key)) pane.node.remove();
    const isLost = link.condition !== 'live' || (state.is_final && !link.hasHeard);
    const empty = isLost ? 'the output is not kept in the notebook' : state.is_final ? 'no output' : 'no output yet';
    const query = chosen.query.toLowerCase();
    wanted.forEach((rank, i) => {
      let pane = this.panes.get(rank);
      if (!pane) {
        const device = state.ranks.find((known) => known.rank === rank)?.device;
        this.panes.set(rank, (pane = new Pane(this, isMerged ? 'all ranks' : `rank ${rank} · ${device}`)));
        this.logs.insertBefore(pane.node, this.logs.children[i] || null);
      }
      pane.source = isMerged ? this.found || this.mergedRows() : rankRows(rank, link.of(rank), this.rangeOf(rank));
      pane.query = query;
      set(pane.empty, { textContent: this.found ? 'nothing found' : empty });
    });
    const n = wanted.length;
    const shape = isMerged ? 'ice-one ice-merged' : n === 1 ? 'ice-one' : n > 4 ? 'ice-many' : 'ice-few';
    set(this.logs, { className: `ice-panes ${shape}${this.logs.style.height ? ' ice-sized' : ''}` });
    this.drawTools(state, query);
    this.drawPanes();
    const [rank, line] = this.wanted;
    if (link.of(rank).has(line)) {
      this.wanted = [0, -1];
      this.panes.get(rank)?.show(line);
    }
  }

  /** @param {State} state @param {string} query */
  drawTools(state, query) {
    const { chosen, isMerged } = this;
    const options = state.attempts.map((number, i) => [number, `attempt ${i + 1}`]);
    this.fill(this.attempts, String(state.attempts), () => [[-1, 'all attempts'], ...options].map(([value, text]) => el('option', '', text, { value })));
    set(this.attempts, { hidden: state.attempts.length < 2, value: String(chosen.attempt) });
    let n = 0;
    // Half a second old is new enough for a number.
    const version = `${Math.floor(ticks() / 500)}|${this.link.version && chosen.attempt}|${chosen.ranks}|${isMerged}`;
    for (const pane of this.panes.values()) {
      pane.count(query, version);
      n += pane.hits.length;
    }
    const place = this.at >= 0 && n ? `${Math.min(this.at, n - 1) + 1}/` : '';
    set(this.hits, { hidden: !query, textContent: this.found ? this.findings : place + many(n, 'hit') });
    set(this.files, { hidden: !query || !this.isLive, textContent: this.found ? 'back' : 'whole files' });
    this.modes.forEach((node, i) => set(node, { ariaPressed: String(isMerged === (i === 1)) }));
    set(this.modes[0].parentNode, { hidden: this.shown.length < 2 });
    set(this.download, { hidden: !this.isLive });
  }

  drawPanes() {
    const { scrollTop, clientHeight } = this.logs;
    for (const pane of this.panes.values()) {
      const top = pane.node.offsetTop - scrollTop;
      if (top < clientHeight + 50 && top + pane.node.offsetHeight > -50) pane.draw();
    }
  }

  // ---- what a person asks for

  /** Go to the next hit, or the one before. @param {number} by */
  step(by) {
    const hits = [...this.panes.values()].flatMap((pane) => pane.hits.map((key) => ({ pane, key })));
    if (!hits.length) return;
    this.at = (this.at < 0 && by < 0 ? hits.length - 1 : this.at + by + hits.length) % hits.length;
    hits[this.at].pane.show(hits[this.at].key);
    this.draw();
  }

  /** A row was clicked: of a gap, whose newest lines are read back, or of what a search found. @param {number[]} row @param {boolean} isGap */
  pick([rank, n, gap], isGap) {
    if (isGap) {
      const first = Math.max(n, n + gap - READ);
      return this.link.send('read', { rank, first, n: Math.min(gap, READ) });
    }
    this.found = null;
    Object.assign(this.chosen, { ranks: [rank], attempt: -1 });
    if (!this.link.of(rank).has(n)) this.link.send('read', { rank, first: Math.max(0, n - 50), n: READ });
    this.wanted = [rank, n];
    this.draw();
  }

  searchFiles() {
    if (this.found) {
      this.found = null;
      return this.draw();
    }
    const id = Math.random().toString(36).slice(2);
    this.found = { rows: 0, at: () => ({ rank: 0, n: 0, text: '', gap: 0 }), keyOf: (row) => row, rowOf: (key) => key };
    this.findings = 'searching…';
    this.link.answer = (message, buffers) => {
      if (message.id !== id || !this.found) return;
      const texts = textsOf(buffers);
      this.findings = `${many(message.total, 'line')} in the files${message.done ? '' : '…'}`;
      this.found.rows = message.hits.length;
      this.found.at = (row) => ({ rank: message.hits[row][0], n: message.hits[row][1], text: texts[row], gap: 0 });
    };
    this.link.send('search', { id, text: this.chosen.query, ranks: this.shown });
    this.draw();
  }

  copyShown() {
    const texts = [...this.panes.values()].flatMap(({ source }) => {
      const rows = [];
      for (let i = 0; i < source.rows; i++) {
        const { rank, text, gap } = source.at(i);
        rows.push((this.isMerged ? `[${rank}] ` : '') + (gap ? `… ${many(gap, 'line')} not shown` : plain(text)));
      }
      return rows;
    });
    const area = el('textarea', '', { value: texts.join('\n') + '\n' });
    this.root.append(area); // the clipboard of `navigator` is there on secure pages only
    area.select();
    this.notice = document.execCommand('copy') ? `Copied ${many(texts.length, 'line')}.` : 'The browser refused to copy.';
    area.remove();
    this.draw();
  }

  downloadShown() {
    const ranks = this.shown.slice();
    const { attempts } = this.link.state;
    const attempt = this.chosen.attempt >= 0 ? this.chosen.attempt : attempts[attempts.length - 1];
    /** @type {DataView[]} */
    let pieces = [];
    const read = () => ranks.length && this.link.send('file', { rank: ranks[0], attempt, offset: pieces.reduce((sum, piece) => sum + piece.byteLength, 0) });
    this.link.answer = ({ kind, rank, offset, size }, [piece]) => {
      if (kind !== 'file' || rank !== ranks[0]) return;
      if (size > LARGEST) this.notice = `The log of rank ${rank} has ${bytes(size)}, too much for a page: it is in ${this.link.state.folder}.`;
      else {
        pieces.push(piece);
        if (offset + piece.byteLength < size && piece.byteLength) return setTimeout(read, 60);
        const href = URL.createObjectURL(new Blob(/** @type {any} */ (pieces)));
        const link = el('a', '', { href, download: `attempt_${attempt}-rank_${rank}.log` });
        link.click();
        setTimeout(() => URL.revokeObjectURL(href), 60000);
        this.notice = '';
      }
      pieces = [];
      ranks.shift();
      read();
    };
    read();
  }
}

// ---- the widget ---------------------------------------------------------------------------------------------------------------------

export default () => {
  /** @type {Link | null} */
  let link = null;
  return {
    /** @param {{model: Model}} given */
    initialize({ model }) {
      const made = (link = new Link(model));
      return () => made.close();
    },

    /** @param {{model: Model, el: HTMLElement}} given */
    render({ model, el: outer }) {
      const shared = link || (link = new Link(model));
      const view = new View(shared, outer);
      return () => view.close();
    },
  };
};
