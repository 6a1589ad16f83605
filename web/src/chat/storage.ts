/** Conversations in this browser's IndexedDB: a record for each conversation, message and picture. Where the browser has
 * no database (a private window of some), they live as long as the page. */
import type { Conversation, Message, Picture } from "./model.ts";

const NAME = "lightllm-mp";
const STORES = ["conversations", "messages", "pictures"] as const;
type Store = (typeof STORES)[number];
type Stored = { conversations: Conversation; messages: Message; pictures: Picture };

export class Storage {
  private constructor(private readonly db: IDBDatabase | undefined) {}

  private readonly memory = new Map(STORES.map((name) => [name, new Map<string, unknown>()]));

  /** False: nothing survives a reload. */
  get lasting(): boolean {
    return this.db !== undefined;
  }

  static async open(): Promise<Storage> {
    try {
      return new Storage(await openDatabase());
    } catch {
      return new Storage(undefined);
    }
  }

  async all<S extends Store>(store: S): Promise<Stored[S][]> {
    if (!this.db) return [...this.memory.get(store)!.values()] as Stored[S][];
    return done(this.db.transaction(store).objectStore(store).getAll()) as Promise<Stored[S][]>;
  }

  async get<S extends Store>(store: S, id: string): Promise<Stored[S] | undefined> {
    if (!this.db) return this.memory.get(store)!.get(id) as Stored[S] | undefined;
    return done(this.db.transaction(store).objectStore(store).get(id)) as Promise<Stored[S] | undefined>;
  }

  /** The messages or pictures of a conversation. */
  async of<S extends "messages" | "pictures">(store: S, conversation: string): Promise<Stored[S][]> {
    if (!this.db) return (await this.all(store)).filter((one) => one.conversation === conversation);
    return done(this.db.transaction(store).objectStore(store).index("conversation").getAll(conversation));
  }

  async put<S extends Store>(store: S, ...records: Stored[S][]): Promise<void> {
    if (!this.db) {
      for (const record of records) this.memory.get(store)!.set(record.id, structuredClone(record));
      return;
    }
    const transaction = this.db.transaction(store, "readwrite");
    for (const record of records) transaction.objectStore(store).put(record);
    await completed(transaction);
  }

  async remove(store: Store, ...ids: string[]): Promise<void> {
    if (!this.db) {
      for (const id of ids) this.memory.get(store)!.delete(id);
      return;
    }
    const transaction = this.db.transaction(store, "readwrite");
    for (const id of ids) transaction.objectStore(store).delete(id);
    await completed(transaction);
  }

  /** A conversation with all that belongs to it, or nothing. */
  async removeConversation(id: string): Promise<void> {
    const parts = ["messages", "pictures"] as const;
    if (!this.db) {
      for (const store of parts) await this.remove(store, ...(await this.of(store, id)).map((one) => one.id));
      return this.remove("conversations", id);
    }
    const transaction = this.db.transaction(STORES, "readwrite");
    transaction.objectStore("conversations").delete(id);
    for (const name of parts) {
      const store = transaction.objectStore(name);
      const keys = store.index("conversation").getAllKeys(id);
      keys.onsuccess = () => keys.result.forEach((key) => store.delete(key));
    }
    await completed(transaction);
  }
}

function openDatabase(): Promise<IDBDatabase> {
  const opening = indexedDB.open(NAME, 1);
  opening.onupgradeneeded = () => {
    for (const name of STORES) {
      const store = opening.result.createObjectStore(name, { keyPath: "id" });
      if (name !== "conversations") store.createIndex("conversation", "conversation");
    }
  };
  return done(opening);
}

function done<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

function completed(transaction: IDBTransaction): Promise<void> {
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onerror = transaction.onabort = () => reject(transaction.error);
  });
}
