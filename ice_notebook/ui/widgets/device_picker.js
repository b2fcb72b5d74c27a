// @ts-check
// The device picker's page side. Above: pure functions. Below: the link to the kernel, one per model and page, and its views, of which
// there may be several. The kernel owns what is picked: a view sends what a person asks for, and draws what the kernel answers.

/**
 * @typedef {{whose: string, who: string, command: string, pid: number | null, memory: number | null}} Process
 * @typedef {{id: string, uuid: string, physical: string, name: string, part: string, picked: boolean, status: string, memory: number,
 *   used: number | null, load: number | null, temperature: number | null, power: number | null, limit: number | null, runs: string[],
 *   processes: Process[]}} Gpu
 * @typedef {{text: string, n_cpu: number, n_cores: number, most_ranks: number, gpus: Gpu[], no_gpu: string, variable: string | null,
 *   n_hidden: number, label: string, is_default: boolean, taken: string[], problems: string[], read_at: number, rev: number}} State
 * @typedef {{kind: string, nonce: string, at: number, sent: number, uuids?: string[], on?: boolean, n?: number}} Asked
 * @typedef {{get: (name: string) => any, send: (content: any) => void, on: (name: string, f: any) => void, off: (name: string, f: any) => void}} Model
 */

const RENEW = 15; // seconds after which a page says again that somebody looks; the kernel believes it for 40
const SILENT = 10; // seconds without an answer until the page says so; a picker that is looked at hears every 2
const FIRST_ANSWER = 5; // seconds until a picker that hears nothing at all counts as a saved view
const BUSY = 1.5; // seconds until something asked for counts as waiting
const AGAIN = [1, 3, 9]; // seconds after which it is sent again: a message may be lost, and a busy kernel keeps them all
const HOT = 0.85; // of the whole, from where a meter is drawn in another colour
const MOST = 4; // processes that a card lists
const MARKS = { free: '○', 'in use': '●', yours: '◆', unknown: '?' };

// ---- pure ---------------------------------------------------------------------------------------------------------------------------

/** A memory size in GiB, without the unit. @param {number} bytes */
export const gib = (bytes) => {
  const n = bytes / 2 ** 30;
  return n < 99.95 ? n.toFixed(1) : String(Math.round(n));
};

/** @param {number} n @param {string} word */
const many = (n, word) => `${n} ${word}${n === 1 ? '' : 's'}`;

/** What is picked once the kernel has taken up all that was asked for. @param {State} state @param {Asked[]} asked */
export function wanted(state, asked) {
  let gpus = new Set(state.gpus.filter((gpu) => gpu.picked).map((gpu) => gpu.uuid));
  let cpu = state.n_cpu;
  for (const { kind, uuids = [], on, n = 0 } of asked) {
    if (kind === 'pick') {
      cpu = 0;
      for (const uuid of uuids) on ? gpus.add(uuid) : gpus.delete(uuid);
    } else if (kind === 'none' || (kind === 'cpu' && (n || cpu))) {
      gpus = new Set();
      cpu = n;
    } else if (kind === 'free') {
      cpu = 0;
      gpus = new Set(state.gpus.filter((gpu) => gpu.status === 'free').map((gpu) => gpu.uuid));
    }
  }
  return { gpus, cpu };
}

/** The UUIDs in the order of the cards: free ones first. @param {Gpu[]} gpus */
export const inOrder = (gpus) =>
  [...gpus.filter((gpu) => gpu.status === 'free'), ...gpus.filter((gpu) => gpu.status !== 'free')].map((gpu) => gpu.uuid);

/** How warm it is and what it draws. @param {Gpu} gpu */
export function heat({ temperature, power, limit }) {
  const watts = power === null ? '' : `${Math.round(power)}${limit === null ? '' : ` / ${Math.round(limit)}`} W`;
  return [temperature === null ? '' : `${temperature} °C`, watts].filter(Boolean).join(' · ');
}

/** Who uses a GPU: the name in front, what else is known behind it. @param {Gpu} gpu @returns {string[][]} */
export function users({ runs, processes }) {
  const lines = runs.map((run) => ['yours: run', run, '']);
  for (const { whose, who, command, pid, memory } of processes) {
    const name = whose === 'run' ? 'yours: run' : who;
    const what = whose === 'run' ? who.replace(/^your run ?/, '') : command;
    lines.push([name, what || (pid && whose !== 'notebook' ? `pid ${pid}` : ''), memory === null ? '' : `${gib(memory)} GiB`]);
  }
  const more = lines.length - MOST;
  return more > 1 ? [...lines.slice(0, MOST), ['', `and ${more} more`, '']] : lines;
}

/** What a person who cannot see the picker is told of a change. @param {State | null} before @param {State} after */
export function news(before, after) {
  if (!before) return '';
  const old = new Map(before.gpus.map((gpu) => [gpu.uuid, gpu.status]));
  const changed = after.gpus.filter((gpu) => old.has(gpu.uuid) && old.get(gpu.uuid) !== gpu.status);
  const picked = before.text === after.text ? [] : [after.text ? `Picked: ${after.text}.` : 'Nothing is picked.'];
  return [...picked, ...changed.map((gpu) => `${gpu.id} is ${gpu.status} now.`)].join(' ');
}

/** What the line below the cards means. @param {State} state */
export function meaning({ text, n_cpu, gpus, is_default }) {
  const n = n_cpu || gpus.filter((gpu) => gpu.picked).length;
  if (!text) return is_default ? 'Nothing is picked: launches that name no devices use auto.' : 'Nothing is picked yet.';
  const ranks = n_cpu ? `${many(n, 'rank')} on the CPU` : n === 1 ? '1 rank on this GPU' : `${n} ranks, one on each GPU`;
  return is_default ? `${ranks}. Launches that name no devices use it too.` : `${ranks}.`;
}

/** @param {number} at seconds since the epoch */
const clock = (at) => new Date(at * 1000).toLocaleTimeString();

// ---- elements -----------------------------------------------------------------------------------------------------------------------

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

/** @param {string} name @param {string} text @param {string} title @param {(event: any) => void} act */
const button = (name, text, title, act) => el('button', name, text, { type: 'button', title, ariaLabel: title, onclick: act });

/** Set what differs, so that selections and focus survive. @param {any} node @param {Record<string, any>} properties */
function set(node, properties) {
  for (const [name, value] of Object.entries(properties)) if (node[name] !== value) node[name] = value;
}

/** A measured value: its name, a bar and the number. */
class Meter {
  /** @param {string} name @param {string} label */
  constructor(name, label) {
    this.fill = el('span', 'ice-fill');
    this.bar = el('span', 'ice-bar', this.fill, { role: 'meter', ariaLabel: label, ariaValueMin: '0', ariaValueMax: '100' });
    this.number = el('span', 'ice-number');
    this.nodes = [el('span', 'ice-what', name), this.bar, this.number];
  }

  /** @param {number | null} part @param {string} text */
  draw(part, text) {
    for (const node of this.nodes) set(node, { hidden: !text });
    const percent = Math.round(Math.min(1, part || 0) * 100);
    set(this.bar, { ariaValueNow: String(percent), ariaValueText: text });
    set(this.bar.style, { visibility: part === null ? 'hidden' : '' });
    set(this.fill, { className: `ice-fill${(part || 0) > HOT ? ' ice-hot' : ''}` });
    set(this.fill.style, { width: `${percent}%` });
    set(this.number, { textContent: text });
  }
}

class Card {
  /** @param {string} uuid @param {(uuid: string, on: boolean) => void} pick */
  constructor(uuid, pick) {
    this.box = el('input', '', { type: 'checkbox', onchange: () => pick(uuid, this.box.checked) });
    [this.id, this.physical, this.status, this.model, this.heat, this.users] = [
      ['b', ''],
      ['small', 'ice-physical'],
      ['span', 'ice-status'],
      ['span', 'ice-model'],
      ['span', 'ice-heat'],
      ['span', 'ice-users'],
    ].map(([tag, name]) => el(tag, name));
    this.memory = new Meter('memory', 'memory used');
    this.load = new Meter('load', 'load');
    const top = el('span', 'ice-top', this.box, this.id, this.physical, this.status);
    const meters = el('span', 'ice-meters', ...this.memory.nodes, ...this.load.nodes);
    this.node = el('label', 'ice-card', top, this.model, meters, this.heat, this.users);
    this.drawn = '';
  }

  /** @param {Gpu} gpu @param {boolean} isOn @param {boolean} isOff */
  draw(gpu, isOn, isOff) {
    set(this.node, { className: `ice-card ice-is-${gpu.status.replace(' ', '-')}${isOn ? ' ice-on' : ''}`, title: [gpu.part, gpu.uuid].filter(Boolean).join(', ') });
    const also = gpu.physical ? `${gpu.physical} of this machine` : '';
    set(this.box, { checked: isOn, disabled: isOff, ariaLabel: [gpu.id, also, gpu.name, gpu.status].filter(Boolean).join(', ') });
    set(this.id, { textContent: gpu.id });
    set(this.physical, { textContent: gpu.physical, hidden: !gpu.physical, title: 'its name on this machine' });
    set(this.status, { textContent: `${/** @type {any} */ (MARKS)[gpu.status]} ${gpu.status}` });
    set(this.model, { textContent: gpu.name });
    const { used, memory, load } = gpu;
    const total = memory ? ` / ${gib(memory)} GiB` : ' GiB';
    this.memory.draw(used !== null && memory ? used / memory : null, used !== null ? gib(used) + total : memory ? `${gib(memory)} GiB` : '');
    this.load.draw(load === null ? null : load / 100, load === null ? '' : `${load} %`);
    set(this.heat, { textContent: heat(gpu), hidden: !heat(gpu) });
    const lines = users(gpu);
    if (this.drawn === JSON.stringify(lines)) return;
    this.drawn = JSON.stringify(lines);
    const rows = lines.map(([who, what, size]) =>
      el('span', 'ice-user', el('span', 'ice-who', el('b', '', who), ` ${what}`), el('span', '', size), { title: [who, what, size].join(' ').trim() }),
    );
    this.users.replaceChildren(...rows);
    set(this.users, { hidden: !rows.length });
  }
}

// ---- the link to the kernel -----------------------------------------------------------------------------------------------------------

class Link {
  /** @param {Model} model */
  constructor(model) {
    this.model = model;
    this.tab = Math.random().toString(36).slice(2);
    /** @type {Set<View>} */
    this.views = new Set();
    /** @type {Asked[]} what the kernel has not taken up yet */
    this.asked = [];
    this.hasHeard = this.isCut = this.isLooking = false;
    this.stale = -1; // the time of the reading that was there when somebody came back; after a newer one the cards are sorted
    this.heardAt = this.lookedAt = performance.now();
    this.timer = 0;
    this.handlers = {
      'change:state': () => this.heard(),
      comm_live_update: () => this.cut(),
    };
    for (const [name, f] of Object.entries(this.handlers)) model.on(name, f);
    this.seen = () => this.look();
    document.addEventListener('visibilitychange', this.seen);
  }

  close() {
    for (const [name, f] of Object.entries(this.handlers)) this.model.off(name, f);
    document.removeEventListener('visibilitychange', this.seen);
    clearInterval(this.timer);
    if (this.isLooking) this.post({ kind: 'away' });
  }

  /** @param {Record<string, any>} content */
  post(content) {
    if (this.isCut) return;
    try {
      this.model.send({ ...content, tab: this.tab });
    } catch {
      // The connection was closed just now. The front end says so a moment later.
    }
  }

  /** @returns {State} */
  get state() {
    return this.model.get('state');
  }

  /** Seconds since the kernel was heard, or since somebody began to look. */
  get silence() {
    return (performance.now() - this.heardAt) / 1000;
  }

  /** `saved` without a kernel from the start, `gone` when there was one, `silent` when it does not answer, else `live`. */
  get condition() {
    if (this.isCut) return this.hasHeard ? 'gone' : 'saved';
    if (!this.isLooking) return 'live';
    if (!this.hasHeard) return this.silence > FIRST_ANSWER ? 'saved' : 'live';
    return this.silence > SILENT ? 'silent' : 'live';
  }

  heard() {
    this.hasHeard = true;
    this.isCut = false;
    this.heardAt = performance.now();
    const { taken, read_at } = this.state;
    const isTaken = (/** @type {Asked} */ { nonce }) => taken.includes(nonce);
    const isSorted = this.asked.some((one) => isTaken(one) && /free|refresh/.test(one.kind));
    this.asked = this.asked.filter((one) => !isTaken(one));
    if (isSorted || (this.stale >= 0 && read_at !== this.stale)) {
      this.stale = -1;
      for (const view of this.views) view.order = [];
    }
    this.changed();
  }

  cut() {
    this.isCut = true;
    this.asked = [];
    this.changed();
  }

  changed() {
    for (const view of this.views) view.draw();
  }

  /** Tell the kernel whether somebody looks: whether any view is in sight, in a tab that is. */
  look() {
    const isSeen = document.visibilityState === 'visible' && [...this.views].some((view) => view.isSeen);
    if (isSeen === this.isLooking) return;
    this.isLooking = isSeen;
    clearInterval(this.timer);
    if (isSeen) {
      this.heardAt = performance.now();
      this.stale = this.state.read_at;
      this.sayLook();
      this.timer = window.setInterval(() => this.tick(), 500);
    } else this.post({ kind: 'away' });
  }

  sayLook() {
    this.lookedAt = performance.now();
    this.post({ kind: 'look' });
  }

  tick() {
    const now = performance.now();
    // Only when the last one was answered: a busy kernel keeps what it is sent.
    if (now - this.lookedAt > RENEW * 1000 && this.heardAt >= this.lookedAt) this.sayLook();
    for (const one of this.asked) {
      if (one.sent < AGAIN.length && now - one.at > AGAIN[one.sent] * 1000) {
        one.sent++;
        this.post(this.message(one));
      }
    }
    this.changed();
  }

  /** Ask for something until the kernel has taken it up. @param {string} kind @param {Record<string, any>} [more] */
  ask(kind, more = {}) {
    const one = { kind, ...more, nonce: Math.random().toString(36).slice(2), at: performance.now(), sent: 0 };
    this.asked.push(one);
    this.post(this.message(one));
    this.changed();
  }

  /** @param {Asked} one */
  message({ at, sent, ...content }) {
    return content;
  }
}

// ---- a view -----------------------------------------------------------------------------------------------------------------------------

class View {
  /** @param {Link} link @param {HTMLElement} outer */
  constructor(link, outer) {
    this.link = link;
    this.isSeen = false;
    /** @type {Map<string, Card>} */
    this.cards = new Map();
    /** @type {string[]} the cards from left to right: found anew when somebody asks or comes back, so that none moves under the pointer */
    this.order = [];
    /** @type {State | null} */
    this.last = null;
    this.build();
    // A notebook's shortcuts cut, delete and change cells. None of them is meant for the focused cell while something here has the focus.
    // Notebook 7 hears keys at the document, on their way down; the window is before it. What the browser itself does with a key stays.
    this.keys = (/** @type {KeyboardEvent} */ event) => {
      if (this.root.contains(event.target)) event.stopPropagation();
    };
    window.addEventListener('keydown', this.keys, true);
    this.root.addEventListener('click', (/** @type {MouseEvent} */ event) => {
      // nbclassic takes care of focused widgets itself, and takes a lost focus amiss. Who types a number goes on to type.
      const isClassic = !!(/** @type {any} */ (window).Jupyter?.notebook);
      const focused = document.activeElement;
      const isTyped = focused === this.count;
      if (event.detail > 0 && !isClassic && !isTyped && focused instanceof HTMLElement && this.root.contains(focused)) focused.blur();
    });
    outer.append(this.root);
    link.views.add(this);
    this.sight = new IntersectionObserver(([{ isIntersecting }]) => {
      this.isSeen = isIntersecting;
      link.look();
    });
    this.sight.observe(this.root);
    this.draw();
  }

  build() {
    const { link } = this;
    this.facts = el('span', 'ice-facts');
    this.label = el('span', 'ice-label');
    this.buttons = [
      button('', 'All free', 'Pick all GPUs that nobody uses', () => link.ask('free')),
      button('', 'None', 'Pick nothing', () => link.ask('none')),
      button('', 'Refresh', 'Look at the machine again', () => link.ask('refresh')),
    ];
    const header = el('div', 'ice-header', el('b', '', 'Devices'), this.facts, this.label, el('span', 'ice-buttons', ...this.buttons));
    this.notes = ['ice-trouble', 'ice-problem', 'ice-mask', 'ice-none'].map((name) => el('div', `ice-note ${name}`));
    set(this.notes[0], { role: 'status' });
    set(this.notes[1], { role: 'status' });
    this.grid = el('div', 'ice-cards', { role: 'group', ariaLabel: 'GPUs' });
    const step = (/** @type {number} */ by) => link.ask('cpu', { n: this.bounded(wanted(link.state, link.asked).cpu + by) });
    this.count = el('input', 'ice-count', { type: 'number', min: '0', ariaLabel: 'Ranks on the CPU' });
    this.count.onchange = () => link.ask('cpu', { n: this.bounded(Number(this.count.value)) });
    this.steps = [
      button('ice-step', '−', 'One rank less on the CPU', () => step(-1)),
      button('ice-step', '+', 'One rank more on the CPU', () => step(1)),
    ];
    const cpu = el('span', 'ice-cpu', el('span', '', 'CPU ranks'), el('span', 'ice-stepper', this.steps[0], this.count, this.steps[1]));
    this.line = el('code', 'ice-line');
    this.copy = button('ice-copy', 'Copy', 'Copy the line', () => this.copyLine());
    this.means = el('span', 'ice-means');
    this.said = el('span', 'ice-said', { ariaLive: 'polite' });
    const footer = el('div', 'ice-footer', cpu, this.line, this.copy, this.means, this.said);
    this.root = el('div', 'ice-devices', header, ...this.notes, this.grid, footer, { role: 'group', ariaLabel: 'Device picker' });
  }

  close() {
    this.sight.disconnect();
    window.removeEventListener('keydown', this.keys, true);
    this.link.views.delete(this);
    this.link.look();
    this.root.remove();
  }

  /** @param {number} n */
  bounded(n) {
    return Math.max(0, Math.min(this.link.state.most_ranks, Math.round(n) || 0));
  }

  draw() {
    const { link } = this;
    const { state, condition } = link;
    const isOff = condition === 'saved' || condition === 'gone';
    const { gpus, cpu } = wanted(state, link.asked);
    set(this.root, { className: `ice-devices ice-${condition}` });
    const n = state.gpus.length;
    const free = state.gpus.filter((gpu) => gpu.status === 'free').length;
    set(this.facts, { textContent: `${n ? `${many(n, 'GPU')}, ${free} free · ` : ''}${many(state.n_cores, 'CPU core')}` });
    set(this.label, { textContent: state.label, hidden: !state.label });
    const hidden = state.n_hidden ? `, which hides ${many(state.n_hidden, 'GPU')} of this machine` : '';
    const mask = state.variable === null ? '' : `CUDA_VISIBLE_DEVICES=${state.variable}${hidden}`;
    const problem = state.problems.length ? `The picker itself failed: ${state.problems.join(' · ')}` : '';
    [this.trouble(), problem, n ? mask : '', n ? '' : `No GPU can be used here: ${state.no_gpu}.`].forEach((text, i) =>
      set(this.notes[i], { textContent: text, hidden: !text }),
    );
    set(this.grid, { hidden: !n });
    this.drawCards(state, gpus, isOff);
    if (document.activeElement !== this.count) set(this.count, { value: String(cpu) });
    set(this.count, { max: String(state.most_ranks) });
    for (const node of [...this.buttons, ...this.steps, this.count]) set(node, { disabled: isOff });
    set(this.buttons[0], { hidden: !n });
    set(this.line, { textContent: state.text ? `%%elastic_launch devices=${state.text}` : '%%elastic_launch devices=…' });
    set(this.copy, { disabled: !state.text });
    set(this.means, { textContent: this.isSelected() ? 'The line is selected: copy it with Ctrl+C.' : meaning(state) });
    const told = news(this.last, state);
    if (told) set(this.said, { textContent: told });
    this.last = state;
  }

  trouble() {
    const { state, condition, asked, silence } = this.link;
    const then = `What is shown is from ${clock(state.read_at)}.`;
    if (condition === 'saved') return `A saved view: no kernel answers it. ${then} Run the cell again to pick devices.`;
    if (condition === 'gone') return `The kernel is gone. ${then}`;
    if (condition === 'silent') return `The kernel has not answered for ${Math.floor(silence)} s: it is busy with a cell, or gone. ${then}`;
    if (asked.some(({ at }) => performance.now() - at > BUSY * 1000)) return 'The kernel is busy. What you asked for is done as soon as it answers.';
    return '';
  }

  /** @param {State} state @param {Set<string>} picked @param {boolean} isOff */
  drawCards(state, picked, isOff) {
    const known = new Map(state.gpus.map((gpu) => [gpu.uuid, gpu]));
    for (const [uuid, card] of this.cards) if (!known.has(uuid) && this.cards.delete(uuid)) card.node.remove();
    if (this.order.length !== known.size || !this.order.every((uuid) => known.has(uuid))) this.order = inOrder(state.gpus);
    this.order.forEach((uuid, i) => {
      let card = this.cards.get(uuid);
      if (!card) this.cards.set(uuid, (card = new Card(uuid, (one, on) => this.link.ask('pick', { uuids: [one], on }))));
      if (this.grid.children[i] !== card.node) this.grid.insertBefore(card.node, this.grid.children[i] || null);
      card.draw(/** @type {Gpu} */ (known.get(uuid)), picked.has(uuid), isOff);
    });
  }

  async copyLine() {
    const say = (/** @type {string} */ text) => set(this.said, { textContent: text });
    try {
      await navigator.clipboard.writeText(this.line.textContent);
      this.copied();
      return say('Copied.');
    } catch {
      // The clipboard is there on secure pages only, and may be refused.
    }
    const range = document.createRange();
    range.selectNodeContents(this.line);
    const selection = getSelection();
    selection?.removeAllRanges();
    selection?.addRange(range);
    say('The line is selected: copy it with the keyboard.');
    this.draw();
  }

  /** Whether the line is selected as `copyLine` selects it: whole, and until the person selects something else or the line changes. */
  isSelected() {
    const selection = getSelection();
    return selection?.anchorNode === this.line && !selection.isCollapsed;
  }

  copied() {
    set(this.copy, { textContent: 'Copied' });
    setTimeout(() => set(this.copy, { textContent: 'Copy' }), 1500);
  }
}

// ---- the widget -----------------------------------------------------------------------------------------------------------------------

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
