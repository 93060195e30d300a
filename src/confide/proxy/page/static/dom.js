// Elements without markup: text stays text, whoever wrote it.

export const at = (id) => document.getElementById(id);

// An element with properties, such as className or onclick, attributes of aria and data, and children.
export function make(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key.startsWith("aria-") || key.startsWith("data-") || key === "role") element.setAttribute(key, value);
    else element[key] = value;
  }
  element.append(...children);
  return element;
}

export async function copy(text, button) {
  const said = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
    announce("Copied.");
  } catch {
    button.textContent = "Not allowed";
    announce("The browser does not allow copying here.");
  }
  setTimeout(() => { button.textContent = said; }, 1500);
}

// For screen readers. A new element each time: the same words twice are said twice.
export function announce(text) {
  const live = at("live");
  live.append(make("p", {}, text));
  while (live.childElementCount > 8) live.firstElementChild.remove();
}
