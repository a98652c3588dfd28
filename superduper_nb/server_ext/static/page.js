// The status page: reaches the server that it came from, by the browser's own cookies.

import { Cluster } from "./cluster.js";
import { View } from "./view.js";

const API = new URL("superduper/api/v1/", location.href);
const xsrf = () => document.cookie.match(/(?:^|; )_xsrf=([^;]*)/)?.[1] ?? "";

const cluster = new Cluster(
  {
    request: (path, method = "GET") =>
      fetch(new URL(path, API), { method, headers: method === "GET" ? {} : { "X-XSRFToken": decodeURIComponent(xsrf()) } }),
    socket: path => new WebSocket(Object.assign(new URL(path, API), { protocol: API.protocol.replace("http", "ws") })),
  },
  () => view.update(),
);
const view = new View(cluster);
document.querySelector("main")?.append(view.node);

const look = () => (document.hidden ? cluster.stop() : cluster.start());
document.addEventListener("visibilitychange", look);
look();
