// Pictures and videos that wait to be sent: chosen, dropped or pasted.

const VIDEO_NAMES = /\.(mp4|m4v|mov|mkv|webm|avi|mpe?g|flv|wmv|ogv)$/i;
const PICTURE_NAMES = /\.(png|jpe?g|gif|webp|bmp|tiff?|avif|hei[cf]|jp2|j2k|ico|ppm|pgm)$/i;

/** @returns {"image"|"video"|null} what a file is, by its type or, where the browser knows none, its name */
export function kindOf(file) {
  if (file.type.startsWith("image/")) return "image";
  if (file.type.startsWith("video/") || VIDEO_NAMES.test(file.name)) return "video";
  return PICTURE_NAMES.test(file.name) ? "image" : null;
}

/** Read a file: its kind, its name, an address to show it by and one that holds its bytes. */
export async function attachment(file) {
  const kind = kindOf(file);
  const data = await dataUrl(file);
  return { kind, name: file.name || kind, url: URL.createObjectURL(file), data };
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.replace(/^data:(?=;|,)/, "data:application/octet-stream"));
    reader.onerror = () => reject(new Error(`${file.name} cannot be read.`));
    reader.readAsDataURL(file);
  });
}

/** The part of a message that holds it. */
export function part({ kind, data }) {
  return { type: `${kind}_url`, [`${kind}_url`]: { url: data } };
}

/** An element that shows it; a name where the browser cannot. */
export function shown({ kind, name, url }, { controls }) {
  const element = document.createElement(kind === "video" ? "video" : "img");
  if (kind === "video") {
    Object.assign(element, { muted: true, controls, preload: "metadata", playsInline: true });
    element.setAttribute("aria-label", name);
  } else {
    element.alt = name;
  }
  element.addEventListener("error", () => {
    const words = document.createElement("span");
    words.className = "unseen-kind";
    words.textContent = controls ? `${name} (this browser cannot show it)` : kind;
    element.replaceWith(words);
  });
  element.src = url;
  return element;
}

/**
 * Take files that are dropped on the page or pasted into it.
 * @param {HTMLElement} curtain shown while files are held over the page
 * @param {(files: File[]) => void} take
 */
export function watchDropsAndPastes(curtain, take) {
  let depth = 0;
  const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  const cover = (change) => (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    depth = Math.max(depth + change, 0);
    curtain.hidden = depth === 0;
  };
  addEventListener("dragenter", cover(1));
  addEventListener("dragleave", cover(-1));
  addEventListener("dragover", cover(0));
  addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    depth = 0;
    curtain.hidden = true;
    take([...event.dataTransfer.files]);
  });
  addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (!files.length) return;
    event.preventDefault();
    take(files);
  });
}
