/** What this server is and can do: GET /get_server_info. */
import { signal } from "@preact/signals";
import { ApiError, request } from "./api.ts";

export interface ServerInfo {
  version: string;
  model_name: string;
  authentication: boolean;
  takes_images: boolean;
  max_body_bytes: number;
  facts: ServerFacts | null;
}

interface ServerFacts {
  max_context: number;
  chat?: { reasoning?: string | null };
  /** The model answers with embeddings or scores, and cannot chat. */
  pooled?: object | null;
}

export const serverInfo = signal<ServerInfo | undefined>(undefined);
/** The server does not answer, or is not ready yet. */
export const away = signal(false);

/** Raises what `request` raises. */
export async function loadServerInfo(): Promise<void> {
  serverInfo.value = (await (await request("get_server_info")).json()) as ServerInfo;
  away.value = serverInfo.value.facts === null;
}

/** Asks until the server answers and knows its model. A key that is missing is asked for once. */
export function keepServerInfo(): void {
  const again = (seconds: number) => setTimeout(keepServerInfo, seconds * 1000);
  loadServerInfo().then(
    () => away.value && again(1),
    (error: unknown) => {
      if (error instanceof ApiError && error.status === 401) return;
      away.value = true;
      again(2);
    },
  );
}
