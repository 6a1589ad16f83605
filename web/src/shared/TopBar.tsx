import { Icon } from "./icons.tsx";
import { IconButton } from "./IconButton.tsx";
import { addressOf, follow, view, type View } from "./route.ts";
import { serverInfo } from "./server_info.ts";
import { nextTheme, theme } from "./theme.ts";

const THEME_LABELS = { system: "Theme: as the system", light: "Theme: light", dark: "Theme: dark" };

function Tab({ to, children }: { to: View; children: string }) {
  const current = view.value === to;
  return (
    <a
      class="tab"
      href={addressOf(to)}
      aria-current={current ? "page" : undefined}
      onClick={(event) => follow(event, to)}
    >
      <Icon name={to} size={18} />
      <span>{children}</span>
    </a>
  );
}

/** Name of the model, navigation and theme; the same over every view. */
export function TopBar() {
  return (
    <header class="top-bar">
      <span class="model-name" id="model-name" title={serverInfo.value?.model_name}>
        {serverInfo.value?.model_name ?? "lightllm-mp"}
      </span>
      <nav class="tabs" aria-label="Views">
        <Tab to="chat">Chat</Tab>
        <Tab to="live">Live</Tab>
      </nav>
      <IconButton
        id="theme-button"
        icon={theme.value}
        label={THEME_LABELS[theme.value]}
        onClick={nextTheme}
      />
    </header>
  );
}
