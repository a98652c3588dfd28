// Tells the kernel whether the page is dark, now and whenever that changes.
const DARK = '[data-jp-theme-light="false"], body.vscode-dark, html[theme="dark"], [data-theme="dark"]';

function render({ model, el }) {
  el.hidden = true;
  const tell = () => {
    const dark = document.querySelector(DARK) !== null;
    if (model.get("dark") === dark) return;
    model.set("dark", dark);
    model.save_changes();
  };
  const observer = new MutationObserver(tell);
  for (const node of [document.documentElement, document.body]) observer.observe(node, { attributes: true });
  tell();
  return () => observer.disconnect();
}

export default { render };
