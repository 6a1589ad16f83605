/** A name that nobody can guess: 128 random bits. (crypto.randomUUID exists in secure contexts only.) */
export function newId(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
