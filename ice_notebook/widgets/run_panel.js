// @ts-check
// The run panel's page side. Above: pure functions and the store of lines. Below: the link to the kernel, one per model and page, and the
// views, of which there may be several. What a person selects stays in the view; the kernel is sent nothing but presses.

/**
 * @typedef {{rank: number, device: string, phase: string, note: string, pid: number | null}} Rank
 * @typedef {{rank: number, type?: string, text?: string, html?: string, size_bytes?: number, lost?: string}} Result
 * @typedef {{where: string, first: number, lines: string[], failing: number}} Excerpt
 * @typedef {{rank: number, device: string, headline: string, exit: string, is_communication: boolean, traceback?: string, excerpt?: Excerpt | null}} Failure
 * @typedef {{name: string, devices: string, world_size: number, phase: string, is_final: boolean, began_at: number, ended_at: number | null,
 *   attempt: number, restarts: number, max_restarts: number, grace: number, folder: string, banner: {kind: string, text: string} | null,
 *   ranks: Rank[], results: Result[], failures: Failure[], cell_waits: boolean, acks: string[], problems: string[],
 *   rev: number, seq: number, now: number}} State
 * @typedef {{get: (name: string) => any, send: (content: any) => void, on: (name: string, f: any) => void, off: (name: string, f: any) => void}} Model
 */

const ROW = 16; // px; also the line height in the style sheet
const RING = 20000; // lines of a rank that a page keeps
const CHANGEABLE = 50; // newest lines of a rank that the kernel may still change
const NOTE = '\x01'; // begins a line that the kernel side wrote itself
const HAND = 3; // seconds after a touch in which scrolling is a person's; a dragged scroll bar tells of its beginning only
const BEATS_MISSED = 10; // seconds without a sign of life until the kernel counts as gone; it sends one every second
const FIRST_ANSWER = 3; // seconds until a panel that hears nothing at all counts as a saved view

// ---- lines --------------------------------------------------------------------------------------------------------------------------

/** The lines of one rank by number. What is missing between them is shown as one row that counts it. */
export class Lines {
  constructor() {
    /** @type {{first: number, lines: string[]}[]} ascending, apart from each other */
    this.runs = [];
    /** @type {number[]} the row at which each run begins */
    this.starts = [];
    this.rows = 0;
  }

  get end() {
    const last = this.runs[this.runs.length - 1];
    return last ? last.first + last.lines.length : 0;
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
    let surplus = this.runs.reduce((n, run) => n + run.lines.length, 0) - RING;
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

  /** What stands in a row: a line with its number, or how many are missing. @param {number} row @returns {{n: number, text: string, gap: number}} */
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

  /** The row of a line number, or of the gap that it fell into. @param {number} n */
  rowOf(n) {
    let row = 0;
    for (let i = 0; i < this.runs.length && this.runs[i].first <= n; i++) {
      row = this.starts[i] + Math.min(n - this.runs[i].first, this.runs[i].lines.length - 1);
    }
    return row;
  }
}

// ---- text ---------------------------------------------------------------------------------------------------------------------------

/** @param {number} seconds */
export function clock(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  const two = (/** @type {number} */ n) => String(n).padStart(2, '0');
  const hours = Math.floor(s / 3600);
  return `${hours ? hours + ':' : ''}${hours ? two(Math.floor(s / 60) % 60) : Math.floor(s / 60)}:${two(s % 60)}`;
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

/**
 * A line as text nodes and coloured spans. Nothing of it is read as HTML.
 * @param {string} line
 */
export function drawLine(line) {
  const row = document.createElement('div');
  if (line[0] === '\r') line = line.slice(1); // drawn over: a progress bar
  if (line[0] === NOTE) {
    row.className = 'ice-note';
    row.textContent = line.slice(1);
    return row;
  }
  const parts = line.split(/\x1b\[([\d;]*)m/);
  row.append(parts[0]);
  for (let i = 1; i < parts.length; i += 2) {
    if (!parts[i + 1]) continue;
    const { flags, fg, bg } = look(parts[i]);
    if (!flags.length && !fg && !bg) {
      row.append(parts[i + 1]);
      continue;
    }
    const span = el('span', flags.map((n) => `ice-f${n}`).join(' '), parts[i + 1]);
    const [front, back] = flags.includes(7) ? [bg || 'var(--code)', fg || 'var(--fg)'] : [fg, bg];
    span.style.color = front;
    span.style.background = back;
    row.append(span);
  }
  return row;
}

// ---- elements -----------------------------------------------------------------------------------------------------------------------

/** @param {string} tag @param {string} [name] @param {...(Node | string | null)} kids @returns {any} */
function el(tag, name, ...kids) {
  const node = document.createElement(tag);
  if (name) node.className = name;
  for (const kid of kids) if (kid !== null) node.append(kid);
  return node;
}

/** Set what differs, so that selections and focus survive. @param {any} node @param {Record<string, any>} properties */
function set(node, properties) {
  for (const [name, value] of Object.entries(properties)) if (node[name] !== value) node[name] = value;
}

/**
 * A value's own HTML, in a frame that runs no script, loads nothing and cannot touch the page.
 * @param {string} html @param {string} label
 */
function frame(html, label) {
  const node = el('iframe', 'ice-frame');
  // Without `allow-scripts` nothing in it runs; `allow-same-origin` lets this page, and only it, measure the height.
  node.setAttribute('sandbox', 'allow-same-origin');
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
  const facts = [`rank ${root.rank} (${root.device})`, root.exit, state.attempt > 1 ? `attempt ${state.attempt}` : ''];
  const box = el('div', 'ice-failure', el('h4', '', root.headline));
  if (root.excerpt) facts.push(`${root.excerpt.where}, line ${root.excerpt.failing}`);
  box.append(el('p', '', facts.filter(Boolean).join(' · ')));
  if (root.excerpt) {
    const { first, lines, failing } = root.excerpt;
    const width = String(first + lines.length - 1).length;
    box.append(
      el(
        'div',
        'ice-code',
        ...lines.map((line, i) => {
          const isHit = first + i === failing;
          const number = el('span', 'ice-number', (isHit ? '▸ ' : '  ') + String(first + i).padStart(width));
          return el('div', isHit ? 'ice-hit' : '', number, line);
        }),
      ),
    );
  }
  if (root.traceback) {
    const more = el('details', '', el('summary', '', 'Traceback'), el('pre', '', root.traceback));
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

// ---- one rank's pane ----------------------------------------------------------------------------------------------------------------

class Pane {
  /** @param {(rank: number) => void} choose */
  constructor(/** @type {number} */ rank, /** @type {Lines} */ lines, choose) {
    this.lines = lines;
    this.follows = true;
    this.top = 0; // where it was scrolled to when it was drawn
    this.touchedAt = -Infinity;
    this.anchor = 0; // the number of the topmost line while it does not follow
    this.drawn = '';
    this.name = el('b', '', `rank ${rank}`);
    this.device = el('span', 'ice-device');
    this.phase = el('span', 'ice-phase');
    this.head = el('button', 'ice-head', this.name, this.device, this.phase);
    this.head.addEventListener('click', () => choose(rank));
    this.rows = el('div', 'ice-rows');
    this.pad = el('div', 'ice-pad', this.rows);
    this.box = el('div', 'ice-scroll', this.pad);
    this.empty = el('div', 'ice-empty');
    this.jump = el('button', 'ice-jump', '↓ newest');
    this.jump.title = 'Follow the newest output';
    this.jump.addEventListener('click', () => {
      this.follows = true;
      this.draw();
    });
    this.node = el('section', 'ice-pane', this.head, el('div', 'ice-body', this.box, this.empty, this.jump));
    for (const kind of ['wheel', 'touchmove', 'pointerdown', 'keydown']) {
      this.box.addEventListener(kind, () => (this.touchedAt = performance.now()), { passive: true });
    }
    this.box.addEventListener('scroll', () => this.scrolled(), { passive: true });
  }

  scrolled() {
    const { scrollTop, clientHeight, scrollHeight } = this.box;
    // The very end is the wish to follow; upwards from there, however little, is the wish to read. Without a hand on it, it was the
    // browser that moved it, because the pane changed its height.
    if (scrollTop + clientHeight >= scrollHeight - 1) this.follows = true;
    else if (scrollTop < this.top && performance.now() - this.touchedAt < HAND * 1000) this.follows = false;
    this.top = scrollTop;
    if (this.lines.rows) this.anchor = this.lines.at(Math.min(this.lines.rows - 1, Math.floor(scrollTop / ROW))).n;
    this.draw();
  }

  /** @param {Rank} rank @param {boolean} isAlone @param {string} empty */
  update(rank, isAlone, empty) {
    set(this.node, { className: `ice-pane ice-is-${rank.phase}` });
    set(this.device, { textContent: rank.device });
    set(this.phase, { textContent: rank.phase + (rank.note ? ` · ${rank.note}` : '') });
    const what = `rank ${rank.rank} on ${rank.device}${rank.pid ? `, pid ${rank.pid}` : ''}: ${rank.phase}`;
    set(this.head, { title: `${what}. Click to ${isAlone ? 'show all ranks' : 'show it alone'}.` });
    this.head.setAttribute('aria-pressed', String(isAlone));
    set(this.empty, { textContent: empty });
  }

  /** Draw the rows in sight. */
  draw() {
    const n = this.lines.rows;
    set(this.pad.style, { height: `${n * ROW}px` });
    set(this.empty, { hidden: n > 0 });
    const sight = this.box.clientHeight;
    if (!sight) return;
    if (this.follows) this.box.scrollTop = n * ROW;
    else {
      const row = this.lines.rowOf(this.anchor);
      if (Math.floor(this.box.scrollTop / ROW) !== row) this.box.scrollTop = row * ROW + (this.box.scrollTop % ROW);
    }
    this.top = this.box.scrollTop;
    set(this.jump, { hidden: this.follows || n * ROW <= sight });
    const first = Math.max(0, Math.floor(this.top / ROW) - 4);
    const end = Math.min(n, first + Math.ceil(sight / ROW) + 8);
    const shown = [];
    for (let i = first; i < end; i++) shown.push(this.lines.at(i));
    const key = `${first}|${shown.map((row) => row.gap + row.text).join('\n')}`;
    if (key === this.drawn) return;
    this.drawn = key;
    this.rows.style.top = `${first * ROW}px`;
    this.rows.replaceChildren(
      ...shown.map((row) => (row.gap ? el('div', 'ice-note', `… ${many(row.gap, 'line')} not shown; the log file has them`) : drawLine(row.text))),
    );
  }
}

// ---- the link to the kernel ---------------------------------------------------------------------------------------------------------

/** Send the notebook's own interrupt through the Jupyter server. @param {string} kernel @returns {Promise<boolean>} */
async function interrupt(kernel) {
  const node = document.getElementById('jupyter-config-data');
  const config = node ? JSON.parse(node.textContent || '{}') : {};
  const base = config.baseUrl || document.body.dataset.baseUrl || '/';
  /** @type {Record<string, string>} */
  const headers = {};
  const cookie = document.cookie.match(/(?:^|; )_xsrf=([^;]*)/);
  if (cookie) headers['X-XSRFToken'] = cookie[1];
  if (config.token) headers.Authorization = `token ${config.token}`;
  try {
    return (await fetch(`${base}api/kernels/${kernel}/interrupt`, { method: 'POST', headers })).ok;
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
    /** @type {Record<number, number>} up to where each rank's lines came without a loss */
    this.solid = {};
    this.seq = 0;
    this.lacks = true;
    this.tries = 0;
    this.hasHeard = false;
    this.isCut = false; // the front end has said that the kernel is gone
    this.since = performance.now();
    this.heardAt = this.since;
    this.clockAt = this.since;
    this.clockNow = 0;
    /** @type {{op: string, nonce: string, at: number, sent: number, isTaken: boolean, isForced: boolean, failed: boolean} | null} */
    this.pressed = null;
    /** @type {Set<() => void>} */
    this.views = new Set();
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
    clearTimeout(this.timer);
    clearTimeout(this.asking);
    clearTimeout(this.pressing);
  }

  /** @returns {State} */
  get state() {
    return this.model.get('state');
  }

  /** `saved` without a kernel from the start, `gone` when there was one, else `live`. */
  get condition() {
    const now = performance.now();
    if (!this.hasHeard) return this.isCut || now - this.since > FIRST_ANSWER * 1000 ? 'saved' : 'live';
    if (this.state.is_final) return 'live';
    return this.isCut || now - this.heardAt > BEATS_MISSED * 1000 ? 'gone' : 'live';
  }

  get elapsed() {
    const state = this.state;
    if (!state.began_at) return 0;
    if (state.ended_at) return state.ended_at - state.began_at;
    if (this.condition !== 'live') return (this.hasHeard ? this.clockNow : state.now) - state.began_at;
    return this.clockNow - state.began_at + (performance.now() - this.clockAt) / 1000;
  }

  /** The kernel's clock: the page's own may be another machine's. @param {number} now @param {boolean} [isOld] a stored time */
  setClock(now, isOld = false) {
    // A model that was restored carries the time of its last change; until a beat comes, the page's clock is the better guess.
    this.clockNow = isOld ? Math.max(now || 0, Math.min(Date.now() / 1000, (now || 0) + 30 * 86400)) : now;
    this.clockAt = performance.now();
  }

  /** @param {number} now */
  heard(now) {
    this.hasHeard = true;
    this.isCut = false;
    this.heardAt = performance.now();
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
    this.heard(message.now);
    if (message.kind === 'beat') {
      if (message.seq > this.seq || message.rev > this.state.rev) this.lack();
    } else {
      const decoder = new TextDecoder();
      message.parts.forEach((/** @type {number[]} */ [rank, first], /** @type {number} */ i) => {
        this.of(rank).put(first, decoder.decode(buffers[i]).split('\n'));
      });
      if (message.kind === 'output') {
        if (message.seq > this.seq + 1) this.lack();
        this.seq = Math.max(this.seq, message.seq);
      } else if (message.seq >= this.seq && (message.tab === this.tab || !message.tab)) {
        this.seq = message.seq;
        this.lacks = false;
      }
      if (!this.lacks) for (const [rank, lines] of this.lines) this.solid[rank] = lines.end;
    }
    this.changed();
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
    this.model.send({ kind: 'hello', tab: this.tab, rev: this.hasHeard ? this.state.rev : 0, have });
    const pauses = [200, 300, 500, 1000, 2000, 4000, 8000];
    if (this.tries < pauses.length) this.asking = window.setTimeout(() => this.ask(), pauses[this.tries++]);
    else this.asking = window.setTimeout(() => this.ask(), 15000);
  }

  /** The kernel was restarted or left. Should it be heard again, it is back. */
  cut() {
    this.isCut = true;
    this.changed();
  }

  /** @param {string} op stop | kill */
  press(op) {
    const now = performance.now();
    this.pressed = { op, nonce: `${this.tab}${Math.random().toString(36).slice(2)}`, at: now, sent: 0, isTaken: false, isForced: false, failed: false };
    this.push();
  }

  /** Repeat the press until the kernel has taken it up; after 0.7 s try the server's interrupt, once. */
  push() {
    clearTimeout(this.pressing);
    const press = this.pressed;
    if (!press || this.state.is_final) return this.changed();
    const waited = performance.now() - press.at;
    const isUnderWay = press.isTaken || (press.op === 'stop' && this.state.phase === 'stopping');
    if (!isUnderWay) {
      this.model.send({ kind: 'press', op: press.op, nonce: press.nonce });
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
    const age = press ? performance.now() - press.at : Infinity;
    if (this.condition !== 'live') return { text: 'Stop', op: '', title: 'There is no kernel that could stop it', off: true };
    if (press && press.op === 'kill' && (age < 3000 || !press.isTaken))
      return { text: 'Killing…', op: '', title: 'All processes of the run are being ended', off: true };
    // A double click is one press.
    if (press && age < 600) return { text: 'Stopping…', op: '', title: 'All ranks are asked to stop', off: true };
    if (press || phase === 'stopping')
      return { text: 'Kill now', op: 'kill', title: `Ranks have up to ${grace} s to finish. Press to end them at once`, off: false };
    return { text: 'Stop', op: 'stop', title: `Stop all ranks; they have up to ${grace} s to finish`, off: false };
  }

  /** What went wrong on the way between page and kernel. @returns {string} */
  get trouble() {
    if (this.condition === 'saved') return 'Saved view: no kernel answers. It shows what was known when the notebook was saved.';
    if (this.condition === 'gone') return 'The kernel is gone or was restarted: this is the last that was heard of the run.';
    const press = this.pressed;
    if (press && !press.isTaken && !this.state.is_final && this.state.phase !== 'stopping' && performance.now() - press.at > 3000) {
      return press.isForced && !press.failed
        ? 'The kernel was interrupted and has not answered yet.'
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
    this.outer = outer;
    /** @type {string | null} */
    this.tab = null;
    /** @type {number | null} */
    this.alone = null;
    /** @type {Map<number, Pane>} */
    this.panes = new Map();
    this.due = 0;
    this.chip = el('span', 'ice-chip');
    this.name = el('span', 'ice-name');
    this.facts = el('span', 'ice-facts');
    this.time = el('b');
    this.restarts = el('b');
    this.restartsBox = el('span', 'ice-fact', 'restarts ', this.restarts);
    this.stop = el('button', 'ice-stop', 'Stop');
    this.banner = el('div', 'ice-banner');
    this.banner.setAttribute('role', 'status');
    this.trouble = el('div', 'ice-banner ice-trouble');
    this.trouble.setAttribute('role', 'status');
    this.problems = el('div', 'ice-banner ice-problem');
    /** @type {Record<string, any>} */
    this.tabs = {};
    this.badges = { Results: el('span', 'ice-badge'), Failure: el('span', 'ice-badge ice-bad', '!') };
    this.nav = el('div', 'ice-tabs');
    this.nav.setAttribute('role', 'tablist');
    for (const name of ['Output', 'Results', 'Failure']) {
      const tab = el('button', 'ice-tab', name, /** @type {any} */ (this.badges)[name] || null);
      tab.setAttribute('role', 'tab');
      tab.addEventListener('click', () => {
        this.tab = name;
        this.draw();
      });
      this.tabs[name] = tab;
      this.nav.append(tab);
    }
    this.all = el('button', 'ice-all', 'all ranks');
    this.all.addEventListener('click', () => this.choose(null));
    this.nav.append(this.all);
    this.output = el('div', 'ice-panes');
    this.results = el('div', 'ice-page');
    this.failure = el('div', 'ice-page');
    const head = el(
      'div',
      'ice-header',
      this.chip,
      el('span', 'ice-what', this.name, this.facts),
      el('span', 'ice-fact', 'elapsed ', this.time),
      this.restartsBox,
      this.stop,
    );
    this.root = el('div', 'ice', head, this.banner, this.trouble, this.problems, this.nav, this.output, this.results, this.failure);
    this.stop.addEventListener('click', () => {
      const { op, off } = link.button;
      if (!off) link.press(op);
    });
    // A notebook's shortcuts cut, delete and change cells. None of them is meant for the focused cell while a button here has the focus.
    this.root.addEventListener('keydown', (/** @type {Event} */ event) => event.stopPropagation());
    this.root.addEventListener('click', (/** @type {MouseEvent} */ event) => {
      // nbclassic takes care of focused widgets itself, and takes a lost focus amiss.
      const isClassic = !!(/** @type {any} */ (window).Jupyter?.notebook);
      const focused = document.activeElement;
      if (event.detail > 0 && !isClassic && focused instanceof HTMLElement && this.root.contains(focused)) focused.blur();
    });
    // Panes far down in the list are drawn when they come into sight.
    this.output.addEventListener('scroll', () => this.drawPanes(), { passive: true });
    this.sizes = new ResizeObserver(() => this.ask());
    this.sizes.observe(this.output);
    // Frames do not inherit the theme. Its style sheet may come a little after its name.
    this.theme = new MutationObserver(() => [0, 500].forEach((pause) => setTimeout(() => this.ask(), pause)));
    this.theme.observe(document.body, { attributes: true, attributeFilter: ['data-jp-theme-name', 'data-vscode-theme-id', 'class'] });
    outer.append(this.root);
    link.views.add((this.wake = () => this.ask()));
    this.draw();
  }

  close() {
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

  /** @param {number | null} rank */
  choose(rank) {
    this.alone = this.alone === rank ? null : rank;
    this.draw();
  }

  draw() {
    const { link } = this;
    const state = link.state;
    const { condition, trouble, button } = link;
    set(this.root, { className: `ice ice-phase-${state.phase} ${condition === 'live' ? 'ice-live' : 'ice-dead'}` });
    set(this.chip, { textContent: state.phase });
    set(this.name, { textContent: state.name, title: state.name });
    set(this.facts, { textContent: `${many(state.world_size, 'rank')} · ${state.devices}` });
    set(this.time, { textContent: clock(link.elapsed) });
    set(this.restartsBox, { hidden: !state.max_restarts && !state.restarts });
    set(this.restarts, { textContent: `${state.restarts}/${state.max_restarts}` });
    set(this.stop, { hidden: state.is_final, disabled: button.off, title: button.title, textContent: button.text });
    set(this.banner, { hidden: !state.banner, textContent: state.banner?.text || '', className: `ice-banner ice-${state.banner?.kind}` });
    set(this.trouble, { hidden: !trouble, textContent: trouble });
    const problem = state.problems.length ? `The panel itself failed, the run goes on: ${state.problems.join(' · ')}` : '';
    set(this.problems, { hidden: !problem, textContent: problem });
    this.drawTabs(state);
  }

  /** @param {State} state */
  drawTabs(state) {
    let hasOutput = this.link.seq > 0 || state.seq > 0;
    for (const lines of this.link.lines.values()) hasOutput = hasOutput || lines.rows > 0;
    const isFailed = state.is_final && state.failures.length > 0;
    const open = this.tab || (isFailed ? 'Failure' : state.is_final && !hasOutput && state.results.length ? 'Results' : 'Output');
    set(this.tabs.Results, { hidden: !state.results.length });
    set(this.tabs.Failure, { hidden: !state.failures.length });
    set(this.badges.Results, { textContent: String(state.results.length) });
    for (const [name, tab] of Object.entries(this.tabs)) tab.setAttribute('aria-selected', String(name === open));
    set(this.all, { hidden: this.alone === null || open !== 'Output' });
    set(this.output, { hidden: open !== 'Output' });
    set(this.results, { hidden: open !== 'Results' });
    set(this.failure, { hidden: open !== 'Failure' });
    this.fill(this.results, getComputedStyle(this.root).color + JSON.stringify(state.results), () => drawResults(state));
    this.fill(this.failure, JSON.stringify(state.failures), () => drawFailure(state));
    if (open === 'Output') this.drawOutput(state);
  }

  /** Draw a page that is seen and whose content changed. @param {any} page @param {string} key @param {() => Node[]} draw */
  fill(page, key, draw) {
    if (page.hidden || page.key === key) return;
    page.key = key;
    page.replaceChildren(...draw());
  }

  /** @param {State} state */
  drawOutput(state) {
    const ranks = state.ranks;
    for (const [rank, pane] of this.panes) {
      if (!ranks.some((known) => known.rank === rank)) {
        pane.node.remove();
        this.panes.delete(rank);
      }
    }
    ranks.forEach((rank, i) => {
      let pane = this.panes.get(rank.rank);
      if (!pane) {
        pane = new Pane(rank.rank, this.link.of(rank.rank), (chosen) => this.choose(chosen));
        this.panes.set(rank.rank, pane);
        this.output.insertBefore(pane.node, this.output.children[i] || null);
      }
      const isLost = this.link.condition !== 'live' || (state.is_final && !this.link.hasHeard);
      const empty = isLost ? 'the output is not kept in the notebook' : state.is_final ? 'no output' : 'no output yet';
      pane.update(rank, this.alone === rank.rank, empty);
      set(pane.node, { hidden: this.alone !== null && this.alone !== rank.rank });
    });
    const n = this.alone === null ? ranks.length : 1;
    set(this.output, { className: `ice-panes ${n === 1 ? 'ice-one' : n > 4 ? 'ice-many' : 'ice-few'}` });
    this.drawPanes();
  }

  drawPanes() {
    const { scrollTop, clientHeight } = this.output;
    for (const pane of this.panes.values()) {
      const top = pane.node.offsetTop - scrollTop;
      if (!pane.node.hidden && top < clientHeight + 50 && top + pane.node.offsetHeight > -50) pane.draw();
    }
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
