export type Theme = "system" | "light" | "dark";

export const THEMES: readonly Theme[] = ["system", "light", "dark"];
const KEY = "lightllm-mp.theme";

export function storedTheme(): Theme {
  try {
    const found = localStorage.getItem(KEY) as Theme;
    return THEMES.includes(found) ? found : "system";
  } catch {
    return "system"; // storage is switched off
  }
}

export function storeTheme(theme: Theme): void {
  try {
    localStorage.setItem(KEY, theme);
  } catch {
    // it holds for this page, then
  }
}

/** `data-theme` on the root; without it the system's preference holds (styles/theme.css). */
export function applyTheme(theme: Theme): void {
  if (theme === "system") delete document.documentElement.dataset["theme"];
  else document.documentElement.dataset["theme"] = theme;
}
