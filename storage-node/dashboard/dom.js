// Elements, made and changed without ever reading text as a page.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.setAttribute("class", value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** An element with attributes (`onclick` and the like are listeners) and children. */
export const h = (tag, properties, ...children) => fill(document.createElement(tag), properties, children);

/** The same of a picture. */
export const s = (tag, properties, ...children) => fill(document.createElementNS(SVG, tag), properties, children);

/** The element of that id. */
export const by = (id) => document.getElementById(id);

/** Changes a text, if it is another one: what is selected or read aloud stays. */
export function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Changes an attribute, if it is another one. */
export function set(element, name, value) {
  if (value === null || value === undefined || value === false) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

/** Changes the children of an element, if `is`, what they say, is something else than before. */
export function change(element, is, ...children) {
  if (element.dataset.is === is) return;
  element.dataset.is = is;
  element.replaceChildren(...children.filter((child) => child !== null));
}

/** Shows an element, or not. */
export function show(element, isShown) {
  if (element.hidden === isShown) element.hidden = !isShown;
}

/** Brings the children of `parent` in line with `items`, keeping those that are there already: `make` makes one, `update` fills it. */
export function keep(parent, items, key, make, update) {
  const there = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let at = parent.firstElementChild;
  for (const [index, item] of items.entries()) {
    const name = String(key(item, index));
    let child = there.get(name);
    if (child) there.delete(name);
    else {
      child = make(item);
      child.dataset.key = name;
    }
    update(child, item);
    if (child === at) at = at.nextElementSibling;
    else parent.insertBefore(child, at);
  }
  for (const child of there.values()) child.remove();
}

/** A table, read as one at every width: `columns` are `{ name, title, number }`. Returns the parts that rows go into. */
export function table(labelledBy, columns) {
  const heads = columns.map((column) =>
    h("th", { role: "columnheader", scope: "col", class: column.number ? "number" : null, "data-column": column.name }, column.title));
  const body = h("tbody", { role: "rowgroup" });
  const element = h("table", { role: "table", "aria-labelledby": labelledBy },
    h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, heads)), body);
  return { element, heads, body };
}

/** An empty row of such a table; the first cell names it. */
export function row(columns) {
  const cells = columns.map((column, index) => {
    const properties = { role: index === 0 ? "rowheader" : "cell", class: column.number ? "number" : null, "data-label": column.title };
    return index === 0 ? h("th", { ...properties, scope: "row" }) : h("td", properties);
  });
  return h("tr", { role: "row" }, cells);
}

/** A word with a sign before it, so that colour is never the only one. */
export function mark(kind, text) {
  const signs = { good: "✓", warn: "!", bad: "✕", idle: "·" };
  return h("span", { class: `mark ${kind}` }, h("span", { class: "sign", "aria-hidden": "true" }, signs[kind]), text);
}

/** Says something to those who hear the page. */
export function announce(text) {
  put(by("announce"), text);
}
