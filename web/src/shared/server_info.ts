/** What this server is and can do: GET /get_server_info. */
import { signal } from "@preact/signals";
import { request } from "./api.ts";

export interface ServerInfo {
  version: string;
  model_name: string;
  authentication: boolean;
  takes_images: boolean;
  max_body_bytes: number;
  facts: { max_context: number; chat?: { reasoning?: string | null; tool_calls?: string | null } } | null;
}

export const serverInfo = signal<ServerInfo | undefined>(undefined);

/** Raises what `request` raises. */
export async function loadServerInfo(): Promise<void> {
  serverInfo.value = (await (await request("get_server_info")).json()) as ServerInfo;
}
