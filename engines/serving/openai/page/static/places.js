// What an answer locates: boxes, points and quadrangles between the family's marks, and the words without the marks.

const PART = /<\|object_ref_start\|>(.*?)<\|object_ref_end\|>|<\|(box|quad)_start\|>([^<]*)<\|\2_end\|>/gs;
const POINT = /\(\s*(\d{1,4})\s*,\s*(\d{1,4})\s*\)/g;
const KINDS = { box2: "box", box1: "point", quad4: "quad" };
const UNFINISHED = /<\|(?:box|quad)_start\|>[^<]*$/;
const SPECIAL = /<\|(?:object_ref|box|quad|vision)_(?:start|end)\|>|<\|(?:im_start|im_end|endoftext|image_pad|video_pad|vision_pad)\|>/g;

/**
 * Words and places of an answer, in order.
 * @param {string} text with its marks; its end may be unfinished.
 * @returns {{words: string, place?: {kind: string, label: string|null, points: number[][]}}[]} points in thousandths
 *   of the picture's width and height
 */
export function segments(text) {
  const found = [];
  let label = null;
  let end = 0;
  const say = (words) => {
    if (words.replace(/[\s,;]/g, "")) label = null; // a label is that of the places that follow it directly
    found.push({ words: words.replace(SPECIAL, "") });
  };
  for (const part of text.matchAll(PART)) {
    say(text.slice(end, part.index));
    end = part.index + part[0].length;
    if (part[1] !== undefined) {
      label = part[1].trim();
      found.push({ words: label });
      continue;
    }
    const points = [...part[3].matchAll(POINT)].map((point) => [Number(point[1]), Number(point[2])]);
    const kind = KINDS[part[2] + points.length];
    const isSound = kind && points.flat().every((value) => value <= 1000);
    found.push(isSound ? { words: part[3].trim(), place: { kind, label, points } } : { words: part[3] });
  }
  say(text.slice(end).replace(UNFINISHED, ""));
  return found.filter((one) => one.words);
}

/** The words alone, as a later turn of the conversation quotes them. */
export function plain(text) {
  return segments(text)
    .map((one, index, all) => (one.place && index && !/\s$/.test(all[index - 1].words) ? ` ${one.words}` : one.words))
    .join("");
}

const SVG = "http://www.w3.org/2000/svg";
const SMALL = [360, 280]; // width and height up to which small pictures are shown larger than they are

/**
 * A picture with places drawn on it.
 * @param {{url: string, name: string}} picture
 * @param {object[]} places as `segments` gives them
 */
export function drawn(picture, places) {
  const frame = document.createElement("div");
  frame.className = "drawn";
  const image = document.createElement("img");
  image.addEventListener("load", () => {
    const scale = Math.min(3, SMALL[0] / image.naturalWidth, SMALL[1] / image.naturalHeight);
    if (scale > 1) image.width = Math.round(scale * image.naturalWidth);
  });
  image.src = picture.url;
  image.alt = `${picture.name} with ${places.length} ${places.length === 1 ? "place" : "places"} marked`;
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 1000 1000");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  frame.append(image, svg);
  places.forEach((place, index) => {
    for (const layer of ["halo", "edge"]) svg.append(shape(place, layer));
    frame.append(tag(place, index + 1));
  });
  return frame;
}

function corners({ kind, points }) {
  if (kind !== "box") return points;
  const [[left, top], [right, bottom]] = points;
  return [[left, top], [right, top], [right, bottom], [left, bottom]];
}

function shape(place, layer) {
  const path = document.createElementNS(SVG, "path");
  const points = corners(place).map((point) => point.join(" "));
  // A line of no length with round ends is a dot, round whatever the picture's sides are.
  path.setAttribute("d", place.kind === "point" ? `M${points[0]}h0.01` : `M${points.join("L")}Z`);
  path.setAttribute("class", `${place.kind === "point" ? "dot " : ""}${layer}`);
  return path;
}

function tag(place, number) {
  const tag = document.createElement("span");
  tag.className = "tag";
  tag.textContent = place.label ? `${number} ${place.label}` : String(number);
  const xs = corners(place).map(([x]) => x);
  const ys = corners(place).map(([, y]) => y);
  const [left, top] = [Math.min(...xs), Math.min(...ys)];
  if (top < 90) tag.classList.add("inside");
  if (left > 600) tag.style.right = `${(1000 - Math.max(...xs)) / 10}%`;
  else tag.style.left = `${left / 10}%`;
  tag.style.top = `${top / 10}%`;
  return tag;
}
