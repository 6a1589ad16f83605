import { ChatView } from "./chat/ChatView.tsx";
import { announcement } from "./shared/announcer.ts";
import { KeyDialog } from "./shared/KeyDialog.tsx";
import { lazy } from "./shared/lazy.tsx";
import { view } from "./shared/route.ts";
import { TopBar } from "./TopBar.tsx";

const LiveView = lazy(() => import("./live/LiveView.tsx"));

export function App() {
  return (
    <div class="app">
      <a class="skip-link" href="#main">Skip to content</a>
      <TopBar />
      {view.value === "live" ? <LiveView /> : <ChatView />}
      <KeyDialog />
      <p id="announcer" class="visually-hidden" role="status">{announcement.value}</p>
    </div>
  );
}
