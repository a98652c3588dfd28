import { ILayoutRestorer, JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { ICommandPalette } from '@jupyterlab/apputils';
import { EditorExtensionRegistry, IEditorExtensionRegistry } from '@jupyterlab/codemirror';

import { highlighting } from './highlight';
import { Panel } from './panel';

const COMMAND = 'superduper:show-panel';

const panel: JupyterFrontEndPlugin<void> = {
  id: 'superduper-nb:panel',
  description: 'Shows components, jobs, indexes and models of the server in the left sidebar.',
  autoStart: true,
  optional: [ILayoutRestorer, ICommandPalette],
  activate: (app: JupyterFrontEnd, restorer: ILayoutRestorer | null, palette: ICommandPalette | null) => {
    const shown = new Panel(app.serviceManager.serverSettings);
    app.shell.add(shown, 'left', { rank: 800, type: 'superduper' });
    restorer?.add(shown, shown.id);
    app.commands.addCommand(COMMAND, {
      label: 'Show superduper: Components, Jobs, Indexes, Models',
      execute: () => app.shell.activateById(shown.id),
      describedBy: { args: { type: 'object', properties: {} } }
    });
    palette?.addItem({ command: COMMAND, category: 'superduper' });
  }
};

const highlight: JupyterFrontEndPlugin<void> = {
  id: 'superduper-nb:highlight',
  description: 'Colours the cells that begin with %%sddb.',
  autoStart: true,
  requires: [IEditorExtensionRegistry],
  activate: (app: JupyterFrontEnd, registry: IEditorExtensionRegistry) => {
    registry.addExtension({
      name: 'superduper-nb:highlight',
      // Whatever the editor's language is at first: a notebook learns its own from the kernel, later.
      factory: ({ model }) =>
        EditorExtensionRegistry.createImmutableExtension(highlighting(model.sharedModel.getSource()))
    });
  }
};

export default [panel, highlight];
