/* Creates elements, and announces texts to screen readers.
 *
 * Invariant: foreign texts (prompts, names, messages of a gateway) are inserted as text, never as markup, because this
 * page has all permissions of its user in Airflow.
 */

export const $ = (id) => document.getElementById(id);
export const say = (text) => { $("live").textContent = text; };

export function h(tag, properties, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) {
      element.setAttribute(name, value === true ? "" : value);
    }
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}

export const chip = (tone, text, title) => h("span", { class: `chip ${tone}`, title }, text);
