// What there is to see of a cluster, kept up to date: read once by REST, then moved by the events of the server.
// Shared by the status page and the panel of JupyterLab, which compiles it; types are checked there.

/**
 * How to reach a server: the page and JupyterLab do it each in its own way.
 * @typedef {object} Server
 * @property {(path: string, method?: string) => Promise<Response>} request
 * @property {(path: string) => WebSocket} socket
 */

/**
 * @typedef {object} Job
 * @property {string} _id
 * @property {string} database
 * @property {string} name
 * @property {string} state
 * @property {{done: number, total: number | null, failed: number, rate?: number | null, eta?: number | null}} progress
 * @property {{type: string, message: string} | null} error
 */

/** @typedef {Record<string, any> & {state: string}} Component */
/** @typedef {Record<string, any> & {database: string, id: string}} Named */

/**
 * @typedef {object} Seen
 * @property {"asking" | "starting" | "ready" | "failed" | "stopped" | "absent" | "lost"} state
 * @property {string} version
 * @property {string} problem  why, where something is wrong
 * @property {Record<string, Component>} components
 * @property {Named[]} indexes
 * @property {Named[]} models
 */

const LOOK_MS = 5000;
const SETTLE_MS = 300;
const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 30000;
const JOBS = 200;
const OVER = ["succeeded", "failed", "cancelled", "blocked"];

/** An answer that is none: the server refused, or is not there. */
export class ServerError extends Error {
  /** @param {number} status @param {string} message */
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** @param {Job} job */
export const isOver = job => OVER.includes(job.state);

/** @param {Job} job */
export const canCancel = job => !isOver(job) || job.state === "blocked";

/** @param {Job} job */
export const canRetry = job =>
  ["failed", "cancelled"].includes(job.state) || (job.state === "succeeded" && job.progress.failed > 0);

export class Cluster {
  /**
   * @param {Server} server
   * @param {() => void} changed  called after each change; soon, and often
   */
  constructor(server, changed) {
    this.server = server;
    this.changed = changed;
    /** @type {Seen} */
    this.seen = { state: "asking", version: "", problem: "", components: {}, indexes: [], models: [] };
    /** @type {Map<string, Job>} */
    this.jobs = new Map();
    /** @type {WebSocket | null} */
    this.events = null;
    this.active = false;
    this.seq = -1;
    this.pause = FIRST_PAUSE_MS;
    /** @type {Set<string>} databases whose jobs are to be read again */
    this.stale = new Set();
    /** @type {Record<string, number>} */
    this.timers = {};
  }

  /** Begin to look; harmless when done twice. */
  start() {
    if (!this.active) {
      this.active = true;
      this.look();
    }
  }

  /** Stop looking, and hold no connection; `start` goes on. */
  stop() {
    this.active = false;
    Object.values(this.timers).forEach(clearTimeout);
    this.timers = {};
    this.events?.close();
    this.events = null;
  }

  /** The jobs, those at work first, then the newest. */
  sorted() {
    const ids = (/** @type {Job} */ a, /** @type {Job} */ b) => (a._id < b._id ? 1 : -1);
    return [...this.jobs.values()].sort((a, b) => Number(isOver(a)) - Number(isOver(b)) || ids(a, b));
  }

  /**
   * Cancel or retry a job.
   * @param {Job} job
   * @param {"cancel" | "retry"} what
   */
  async act(job, what) {
    const path = `jobs/${encodeURIComponent(job._id)}/${what}?db=${encodeURIComponent(job.database)}`;
    this.take(job.database, await this.ask(path, "POST"));
    this.reread(job.database);
  }

  /** Read everything but events, and do so again in a while. */
  async look() {
    let pause = LOOK_MS;
    try {
      const status = await this.ask("status");
      Object.assign(this.seen, {
        state: status.state, version: status.version, problem: status.error ?? "", components: status.components ?? {},
      });
      if (status.state === "ready") {
        await this.lookCloser();
      }
    } catch (error) {
      const absent = error instanceof ServerError && error.status === 404;
      Object.assign(this.seen, { state: absent ? "absent" : "lost", problem: absent || !(error instanceof ServerError) ? "" : error.message });
      pause = absent ? LONGEST_PAUSE_MS : LOOK_MS;
    }
    this.changed();
    this.later("look", pause, () => this.look());
  }

  async lookCloser() {
    const { databases } = await this.ask("databases");
    const models = await Promise.all(
      databases.map(async (/** @type {string} */ database) => {
        const found = await this.ask(`models/${encodeURIComponent(database)}`);
        return found.models.map((/** @type {Named} */ model) => ({ ...model, database }));
      }),
    );
    this.seen.models = models.flat();
    this.seen.indexes = (await this.ask("indexes")).indexes;
    for (const job of this.jobs.values()) {
      if (!databases.includes(job.database)) {
        this.jobs.delete(job._id);
      }
    }
    if (this.events === null) { // else events tell
      await this.readJobs(databases);
      if (this.timers.listen === undefined) {
        this.listen();
      }
    }
  }

  /** @param {string[]} databases */
  async readJobs(databases) {
    await Promise.all(databases.map(async database => {
      const db = encodeURIComponent(database);
      const pages = await Promise.all([
        this.ask(`jobs?db=${db}&limit=${JOBS}`),
        this.ask(`jobs?db=${db}&limit=${JOBS}&status=running`), // a long one may be older than those
      ]);
      pages.flatMap(page => page.jobs).forEach(job => this.take(database, job));
    }));
    this.sorted().slice(2 * JOBS).forEach(job => this.jobs.delete(job._id));
    this.changed();
  }

  /** Hear of events from where the last connection ended, else from now on. */
  listen() {
    if (!this.active || this.events !== null) {
      return;
    }
    const socket = this.server.socket(`events?since=${this.seq}`);
    this.events = socket;
    let opened = false;
    socket.onopen = () => {
      opened = true;
      this.pause = FIRST_PAUSE_MS;
      this.reread(...new Set([...this.jobs.values()].map(job => job.database)));
    };
    socket.onmessage = message => this.hear(JSON.parse(message.data));
    socket.onclose = () => {
      if (this.events === socket) {
        this.events = null;
        this.later("listen", this.pause, () => this.listen());
        this.pause = Math.min(2 * this.pause, LONGEST_PAUSE_MS);
        if (opened) {
          this.later("look", 0, () => this.look());
        }
      }
    };
  }

  /** @param {any} event */
  hear(event) {
    this.seq = event.seq;
    if (event.type === "missed") {
      this.reread(...new Set([...this.jobs.values()].map(job => job.database)));
    } else if (event.type === "changed") {
      this.reread(event.database);
    } else if (event.type === "job") {
      const job = this.jobs.get(event.job);
      if (job === undefined || event.state !== "running" || isOver(job)) {
        this.reread(event.database); // its record says more: a name, an error
      }
      if (job !== undefined) {
        const { done = job.progress.done, total = job.progress.total, failed = job.progress.failed } = event;
        this.jobs.set(job._id, { ...job, state: event.state, progress: { ...job.progress, done, total, failed } });
        this.changed();
      }
    }
  }

  /**
   * Read the jobs of some databases again, soon and together.
   * @param {string[]} databases
   */
  reread(...databases) {
    databases.forEach(database => this.stale.add(database));
    if (this.timers.reread === undefined) {
      this.later("reread", SETTLE_MS, async () => {
        const names = [...this.stale];
        this.stale.clear();
        await this.readJobs(names).catch(() => undefined); // the next look tells why
      });
    }
  }

  /** @param {string} database @param {Job} record */
  take(database, record) {
    this.jobs.set(record._id, { ...record, database });
    this.changed();
  }

  /** @param {string} path @param {string} [method] @returns {Promise<any>} */
  async ask(path, method = "GET") {
    const answer = await this.server.request(path, method);
    const body = await answer.json().catch(() => ({}));
    if (!answer.ok) {
      throw new ServerError(answer.status, body.message ?? `the server answered ${answer.status}`);
    }
    return body;
  }

  /**
   * Do something once, later; it replaces what was to be done under that name.
   * @param {string} name
   * @param {number} ms
   * @param {() => void} action
   */
  later(name, ms, action) {
    clearTimeout(this.timers[name]);
    if (this.active) {
      this.timers[name] = Number(setTimeout(() => {
        delete this.timers[name];
        action();
      }, ms));
    }
  }
}
