/** Files become pictures that the model takes: scaled down if they are huge, in a format that it reads. */
import { newId } from "../shared/ids.ts";
import type { Picture } from "./model.ts";

/** Longest side, in pixels: more is scaled down by the model's preprocessing anyway. */
const LONGEST = 2048;
/** A file of at most so many bytes, within LONGEST, in a format that servers read, travels as it is. */
const SMALL = 4 << 20;
const READ_BY_SERVERS = new Set(["image/png", "image/jpeg", "image/webp"]);

/** Raises an Error in words if the browser cannot read the file as a picture. */
export async function pictureOf(file: Blob, name: string, conversation: string): Promise<Picture> {
  const bitmap = await createImageBitmap(file).catch(() => {
    throw new Error(`${name} is not a picture that this browser can read.`);
  });
  try {
    const scale = Math.min(1, LONGEST / Math.max(bitmap.width, bitmap.height));
    const width = Math.max(1, Math.round(bitmap.width * scale));
    const height = Math.max(1, Math.round(bitmap.height * scale));
    const kept = scale === 1 && file.size <= SMALL && READ_BY_SERVERS.has(file.type);
    const data = await dataUrl(kept ? file : await drawn(bitmap, width, height, file.type));
    return { id: newId(), conversation, name, width, height, data };
  } finally {
    bitmap.close();
  }
}

/** Photos become JPEG; everything else keeps its sharp edges and transparency in PNG. */
async function drawn(bitmap: ImageBitmap, width: number, height: number, type: string): Promise<Blob> {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d")!;
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, width, height);
  const to = type === "image/jpeg" ? "image/jpeg" : "image/png";
  return new Promise((resolve, reject) => {
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("The picture could not be scaled."))), to, 0.92);
  });
}

function dataUrl(blob: Blob): Promise<string> {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result as string);
    reader.onerror = () => reject(new Error("The file could not be read."));
    reader.readAsDataURL(blob);
  });
}
