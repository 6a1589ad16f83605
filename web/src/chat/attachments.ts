/** The pictures of the message that is being written. */
import { signal } from "@preact/signals";
import { serverInfo } from "../shared/server_info.ts";
import { current } from "./chats.ts";
import type { Picture } from "./model.ts";
import { pictureOf } from "./picture_files.ts";

export const attached = signal<readonly Picture[]>([]);
/** Files are over the page. */
export const dragging = signal(false);
/** Why a file is not among them. */
export const trouble = signal("");

/** Room for text and JSON in a body. */
const SPARE = 64 << 10;

export async function addPictures(files: Iterable<File>): Promise<void> {
  trouble.value = "";
  if (serverInfo.value && !serverInfo.value.takes_images) {
    trouble.value = "This model takes no pictures.";
    return;
  }
  for (const file of files) {
    try {
      const picture = await pictureOf(file, file.name || "picture", current.value.id);
      const bytes = [...attached.value, picture].reduce((sum, one) => sum + one.data.length, SPARE);
      if (serverInfo.value && bytes > serverInfo.value.max_body_bytes) throw new Error("These pictures are too large together.");
      attached.value = [...attached.value, picture];
    } catch (error) {
      trouble.value = (error as Error).message;
    }
  }
}

export function removePicture(id: string): void {
  attached.value = attached.value.filter((one) => one.id !== id);
}

/** The pictures, for the conversation that is shown; there are none left here. */
export function takePictures(): Picture[] {
  const taken = attached.value.map((one) => ({ ...one, conversation: current.value.id }));
  attached.value = [];
  trouble.value = "";
  return taken;
}
