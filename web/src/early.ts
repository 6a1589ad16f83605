/** Runs before the first paint: the theme that the user has chosen must not come late. */
import { applyTheme, storedTheme } from "./shared/theme_names.ts";

applyTheme(storedTheme());
