// Every text on a page with the contrast of its colour to the ground under it (WCAG 2.2, 1.4.3): [[text, ratio], ...]
() => {
  const numbers = (text) => (text.match(/[\d.]+/g) ?? []).map(Number);
  const blend = (over, under) => {
    const alpha = over[3] ?? 1;
    return under.map((value, i) => over[i] * alpha + value * (1 - alpha));
  };
  const linear = (value) => (value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
  const light = ([red, green, blue]) => 0.2126 * linear(red / 255) + 0.7152 * linear(green / 255) + 0.0722 * linear(blue / 255);
  const ground = (element) => {
    const under = element.parentElement ? ground(element.parentElement) : [255, 255, 255];
    return blend(numbers(getComputedStyle(element).backgroundColor), under);
  };
  const says = (element) => [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    if (!(says(element) || element.placeholder) || !element.checkVisibility()) continue;
    const under = ground(element);
    const style = getComputedStyle(element, element.placeholder ? "::placeholder" : null);
    const [darker, lighter] = [light(blend(numbers(style.color), under)), light(under)].sort((one, other) => one - other);
    found.push([element.textContent.trim().slice(0, 40) || element.id, (lighter + 0.05) / (darker + 0.05)]);
  }
  return found;
}
