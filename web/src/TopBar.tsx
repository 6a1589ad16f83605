import { sidebarOpen, settingsOpen } from "./chat/panels.ts";
import { Icon } from "./shared/icons.tsx";
import { IconButton } from "./shared/IconButton.tsx";
import { addressOf, follow, view, type View } from "./shared/route.ts";
import { away, serverInfo } from "./shared/server_info.ts";
import { nextTheme, theme } from "./shared/theme.ts";

const THEME_LABELS = { system: "Theme: as the system", light: "Theme: light", dark: "Theme: dark" };

function Tab({ to, children }: { to: View; children: string }) {
  const current = view.value === to;
  return (
    <a class="tab" href={addressOf(to)} aria-current={current ? "page" : undefined} onClick={(event) => follow(event, to)}>
      <Icon name={to} size={18} />
      <span>{children}</span>
    </a>
  );
}

/** Name of the model, navigation and theme; the same over every view. */
export function TopBar() {
  const chat = view.value === "chat";
  const open = sidebarOpen.value;
  return (
    <header class="top-bar">
      {chat && (
        <IconButton
          id="sidebar-button"
          icon="menu"
          label={open ? "Hide conversations" : "Show conversations"}
          aria-expanded={open}
          aria-controls="sidebar"
          onClick={() => (sidebarOpen.value = !open)}
        />
      )}
      <p class="model-name">
        <span id="model-name" title={serverInfo.value?.model_name}>{serverInfo.value?.model_name || "lightllm-mp"}</span>
        {away.value && <span class="away" role="status">not ready</span>}
      </p>
      <nav class="tabs" aria-label="Views">
        <Tab to="chat">Chat</Tab>
        <Tab to="live">Live</Tab>
      </nav>
      {chat && <IconButton id="settings-button" icon="settings" label="Settings" onClick={() => (settingsOpen.value = true)} />}
      <IconButton id="theme-button" icon={theme.value} label={THEME_LABELS[theme.value]} onClick={nextTheme} />
    </header>
  );
}
