import { URLExt } from '@jupyterlab/coreutils';
import { ServerConnection } from '@jupyterlab/services';
import { LabIcon } from '@jupyterlab/ui-components';
import { Message } from '@lumino/messaging';
import { Widget } from '@lumino/widgets';

import { Cluster, Server } from '../../superduper_nb/server_ext/static/cluster.js';
import { View } from '../../superduper_nb/server_ext/static/view.js';

const API = 'superduper/api/v1/';

/** Four things that hang together by a fifth. */
const ICON = `<svg xmlns="http://www.w3.org/2000/svg" width="16" viewBox="0 0 24 24">
  <g class="jp-icon3" fill="#616161">
    <circle cx="5" cy="5.5" r="3"/><circle cx="19" cy="5.5" r="3"/><circle cx="5" cy="18.5" r="3"/><circle cx="19" cy="18.5" r="3"/>
    <circle cx="12" cy="12" r="3.6"/>
    <path d="M4.6 6.2l1-1 13.8 12.6-1 1zM18.4 5.2l1 1L5.6 18.8l-1-1z"/>
  </g>
</svg>`;

/** Reach the server as JupyterLab does: its base URL, its token or cookies. */
function connection(settings: ServerConnection.ISettings): Server {
  return {
    request: (path, method = 'GET') =>
      ServerConnection.makeRequest(URLExt.join(settings.baseUrl, API) + path, { method }, settings),
    socket: path => {
      const token = settings.appendToken && settings.token ? `&token=${encodeURIComponent(settings.token)}` : '';
      return new settings.WebSocket(URLExt.join(settings.wsUrl, API) + path + token);
    }
  };
}

/** The panel. It asks the server for nothing while it is not shown. */
export class Panel extends Widget {
  private readonly cluster: Cluster;

  constructor(settings: ServerConnection.ISettings) {
    super();
    this.id = 'superduper-panel';
    this.title.icon = new LabIcon({ name: 'superduper-nb:icon', svgstr: ICON });
    this.title.caption = 'superduper: components, jobs, indexes, models';
    this.addClass('sddb-panel');
    this.node.setAttribute('role', 'region');
    this.node.setAttribute('aria-label', 'superduper');
    this.node.tabIndex = 0; // it scrolls, so the keyboard must reach it
    this.cluster = new Cluster(connection(settings), () => view.update());
    const view = new View(this.cluster);
    this.node.append(view.node);
  }

  protected onAfterShow(message: Message): void {
    super.onAfterShow(message);
    this.cluster.start();
  }

  protected onAfterHide(message: Message): void {
    super.onAfterHide(message);
    this.cluster.stop();
  }

  protected onAfterAttach(message: Message): void {
    super.onAfterAttach(message);
    if (this.isVisible) {
      this.cluster.start();
    }
  }

  protected onActivateRequest(message: Message): void {
    super.onActivateRequest(message);
    this.node.focus();
  }

  dispose(): void {
    this.cluster.stop();
    super.dispose();
  }
}
