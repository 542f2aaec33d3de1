// Dark or light: as the system has it, or as it was chosen here.

const KEY = "heliotrope-theme";

function stored() {
  try {
    return localStorage.getItem(KEY) ?? "system";
  } catch {
    return "system";
  }
}

/** Follows the switch; `changed` is told when colours are other ones. */
export function follow(fieldset, changed) {
  const apply = (theme) => {
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    changed();
  };
  const inputs = [...fieldset.querySelectorAll("input")];
  for (const input of inputs) {
    input.checked = input.value === stored();
    input.addEventListener("change", () => {
      try {
        localStorage.setItem(KEY, input.value);
      } catch {
        // It holds until the page is left.
      }
      apply(input.value);
    });
  }
  if (!inputs.some((input) => input.checked)) inputs[0].checked = true;
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
  apply(inputs.find((input) => input.checked).value);
}

/** A colour of the style sheet as a picture needs it. */
export function colour(element, name) {
  const probe = document.createElement("i");
  probe.style.color = `var(${name})`;
  element.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}
