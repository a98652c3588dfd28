// A cluster as a reader sees it: the same elements in the status page and in the panel of JupyterLab.
// Rows are kept and changed in place, so that focus, selection and what a screen reader follows stay where they are.

import { canCancel, canRetry, isOver } from "./cluster.js";

/** @typedef {import("./cluster.js").Job} Job */
/** @typedef {import("./cluster.js").Cluster} Cluster */

const DRAW_MS = 200;
const ROWS = 100;

/** @type {Record<string, [string, string]>} state → mood, mark: colour alone tells nothing to many readers */
const MOODS = {
  running: ["good", "●"], ready: ["good", "●"], idle: ["", "○"], foreground: ["good", "●"], succeeded: ["good", "✓"],
  starting: ["busy", "◌"], restarting: ["busy", "◌"], loading: ["busy", "◌"], rebuilding: ["busy", "◌"],
  behind: ["warn", "▲"], stopped: ["warn", "▲"], closed: ["warn", "▲"], cancelled: ["warn", "⊘"], blocked: ["warn", "‖"],
  failed: ["bad", "✕"], unreachable: ["bad", "✕"], down: ["bad", "✕"],
};

/** @type {Record<string, string>} */
const SUMMARIES = {
  asking: "Asking the server …",
  starting: "The engines are starting …",
  ready: "Ready",
  failed: "The engines did not start",
  stopped: "The engines are stopped",
  lost: "The server does not answer; trying again",
  absent:
    "This Jupyter server does not run superduper_nb: `pip install superduper-nb` where the server is installed and restart "
    + "it; `jupyter server extension list` must then say `superduper_nb enabled … OK`.",
};

const LABELS = { cancel: ["Cancel", "Cancelling …"], retry: ["Retry", "Queueing …"] };

/**
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {Record<string, string>} [attributes]
 * @param {...(Node | string)} children
 */
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  Object.entries(attributes).forEach(([name, value]) => made.setAttribute(name, value));
  made.append(...children);
  return made;
}

/** @param {Element} node @param {string} text */
function say(node, text) {
  if (node.textContent !== text) {
    node.textContent = text; // an equal text would be read out again
  }
}

/** @param {number} count */
const counted = count => count.toLocaleString("en");

/** @param {number} bytes */
const sized = bytes => (bytes >= 2 ** 20 ? `${counted(Math.round(bytes / 2 ** 20))} MiB` : `${Math.ceil(bytes / 1024)} KiB`);

/** A row: what it is called, its state, what else there is to say. */
class Row {
  constructor() {
    this.name = element("span", { class: "sddb-name" });
    this.state = element("span", { class: "sddb-state" });
    this.more = element("span", { class: "sddb-more" });
    this.node = element("li", {}, this.name, this.state, this.more);
  }

  /** @param {string} state @returns {[string, string]} */
  mood(state) {
    return MOODS[state] ?? ["", "○"];
  }

  /** @param {string} name @param {string} state @param {string} more @param {string} [label] what the state is called */
  show(name, state, more, label = state) {
    const [kind, mark] = this.mood(state);
    say(this.name, name);
    say(this.state, label && `${mark} ${label}`);
    say(this.more, more);
    this.state.dataset.mood = kind;
  }
}

/** A job's row: also a bar, an error, and the button that is of use now. */
class JobRow extends Row {
  /** @param {(job: Job, what: "cancel" | "retry") => Promise<void>} act */
  constructor(act) {
    super();
    this.act = act;
    this.bar = element("progress");
    this.error = element("p", { class: "sddb-error" });
    this.button = element("button", { type: "button" });
    this.button.addEventListener("click", () => this.click());
    this.waiting = false;
    this.node.classList.add("sddb-job");
    this.node.append(this.bar, this.button, this.error);
  }

  /** @param {string} state a job that runs is busy, a component that does is well */
  mood(state) {
    return state === "running" ? /** @type {[string, string]} */ (["busy", "◐"]) : super.mood(state);
  }

  /** @param {Job} job */
  showJob(job) {
    const { done, total, failed } = job.progress ?? { done: 0, total: null, failed: 0 };
    const count = total ? `${counted(done)} of ${counted(total)}` : done ? counted(done) : "";
    this.job = job;
    this.show(job.name, job.state, [count, failed ? `${counted(failed)} failed` : "", job.database].filter(Boolean).join(" · "));
    this.bar.hidden = job.state === "succeeded" || (isOver(job) && !total);
    this.bar.max = total || 1;
    if (total || isOver(job)) {
      this.bar.value = total ? Math.min(done, total) : 1;
    } else {
      this.bar.removeAttribute("value");
    }
    this.bar.setAttribute("aria-label", `${job.name}: ${count || job.state}`);
    this.error.hidden = !this.problem && !job.error;
    say(this.error, this.problem || (job.error ? `${job.error.type}: ${job.error.message}` : ""));
    this.offer();
  }

  get what() {
    const { job } = this;
    return job === undefined ? null : !isOver(job) ? "cancel" : canRetry(job) ? "retry" : canCancel(job) ? "cancel" : null;
  }

  offer() {
    const { what } = this;
    this.button.hidden = what === null;
    if (what !== null) {
      const [label, doing] = LABELS[what];
      say(this.button, this.waiting ? doing : label);
      this.button.setAttribute("aria-label", `${this.waiting ? doing : label} ${this.job?.name}`);
      this.button.setAttribute("aria-disabled", String(this.waiting)); // `disabled` would drop the focus
    }
  }

  async click() {
    const { job, what, waiting } = this;
    if (job === undefined || what === null || waiting) {
      return;
    }
    this.waiting = true;
    this.problem = "";
    this.offer();
    try {
      await this.act(job, what);
    } catch (error) {
      this.problem = `Could not ${what}: ${error instanceof Error ? error.message : error}`;
    }
    this.waiting = false;
    this.showJob(this.job ?? job);
  }
}

/** A list under a heading that folds; rows have keys and are kept. @template {Row} R */
class Section {
  /** @param {string} title @param {string} none @param {() => R} make */
  constructor(title, none, make) {
    this.make = make;
    /** @type {Map<string, R>} */
    this.rows = new Map();
    this.count = element("span", { class: "sddb-count" });
    this.list = element("ul", { "aria-label": title });
    this.none = element("p", { class: "sddb-more" }, none);
    this.foot = element("p", { class: "sddb-more" });
    const heading = element("summary", {}, element("h2", {}, title), this.count);
    this.node = element("details", { open: "" }, heading, this.list, this.none, this.foot);
  }

  /**
   * @template T
   * @param {T[]} items
   * @param {(item: T) => string} key
   * @param {(row: R, item: T) => void} fill
   * @param {string} [count]
   */
  show(items, key, fill, count = items.length ? counted(items.length) : "") {
    const before = this.rows;
    this.rows = new Map(items.map(item => [key(item), before.get(key(item)) ?? this.make()]));
    before.forEach((row, id) => this.rows.has(id) || row.node.remove());
    let place = this.list.firstElementChild;
    items.forEach(item => {
      const row = /** @type {R} */ (this.rows.get(key(item)));
      fill(row, item);
      if (row.node === place) {
        place = place.nextElementSibling;
      } else {
        this.list.insertBefore(row.node, place);
      }
    });
    this.list.hidden = items.length === 0;
    this.none.hidden = items.length > 0;
    say(this.count, count);
  }
}

export class View {
  /** @param {Cluster} cluster */
  constructor(cluster) {
    this.cluster = cluster;
    this.summary = element("p", { role: "status", class: "sddb-summary" });
    this.problem = element("p", { role: "alert", class: "sddb-error" });
    this.components = new Section("Components", "None yet.", () => new Row());
    this.jobs = new Section("Jobs", "None yet: writes and new models make them.",
      () => new JobRow((job, what) => cluster.act(job, what)));
    this.indexes = new Section("Indexes", "None in memory: the first search loads one.", () => new Row());
    this.models = new Section("Models", "None registered.", () => new Row());
    this.sections = [this.components, this.jobs, this.indexes, this.models];
    this.body = element("div", {}, ...this.sections.map(section => section.node));
    this.node = element("div", { class: "sddb-live" }, this.summary, this.problem, this.body);
    /** @type {number | undefined} */
    this.timer = undefined;
    this.draw();
  }

  /** Draw soon: many changes are one drawing. */
  update() {
    this.timer ??= Number(setTimeout(() => {
      this.timer = undefined;
      this.draw();
    }, DRAW_MS));
  }

  draw() {
    const { seen } = this.cluster;
    const version = seen.state === "ready" ? ` · version ${seen.version}` : "";
    say(this.summary, `${SUMMARIES[seen.state]}${version}`);
    say(this.problem, seen.problem);
    this.problem.hidden = !seen.problem;
    this.body.hidden = seen.state === "absent" || Object.keys(seen.components).length === 0;
    this.components.show(Object.entries(seen.components), ([name]) => name, (row, [name, part]) =>
      row.show(name.replaceAll("_", " "), part.state, [part.where, part.version, part.error].filter(Boolean).join(" · ")));
    this.drawJobs();
    this.indexes.show(seen.indexes, index => `${index.database}/${index.collection}/${index.id}`, (row, index) =>
      row.show(index.id, index.state ?? "", [
        `${counted(index.size ?? 0)} vectors`, index.dimension && `${index.dimension} dimensions`, index.measure,
        index.bytes && sized(index.bytes), `${index.database}.${index.collection}`,
      ].filter(Boolean).join(" · ")));
    this.models.show(seen.models, model => `${model.database}/${model.id}`, (row, model) =>
      row.show(model.id, model.state ?? "", [`version ${model.version}`, model.database].join(" · "),
        model.state ?? ""));
  }

  drawJobs() {
    const jobs = this.cluster.sorted();
    const working = jobs.filter(job => !isOver(job)).length;
    const shown = jobs.slice(0, ROWS);
    this.jobs.show(shown, job => job._id, (row, job) => row.showJob(job), working ? `${counted(working)} at work` : "");
    say(this.jobs.foot, jobs.length > ROWS ? "Older ones: %sddb jobs" : "");
  }
}
