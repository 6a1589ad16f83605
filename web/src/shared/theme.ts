import { signal } from "@preact/signals";
import { applyTheme, storeTheme, storedTheme, THEMES, type Theme } from "./theme_names.ts";

export const theme = signal<Theme>(storedTheme());

export function chooseTheme(chosen: Theme): void {
  theme.value = chosen;
  storeTheme(chosen);
  applyTheme(chosen);
}

/** system -> light -> dark -> system */
export function nextTheme(): void {
  chooseTheme(THEMES[(THEMES.indexOf(theme.value) + 1) % THEMES.length]!);
}
