import { ChatView } from "./chat/ChatView.tsx";
import { lazy } from "./shared/lazy.tsx";
import { view } from "./shared/route.ts";
import { TopBar } from "./shared/TopBar.tsx";

const LiveView = lazy(() => import("./live/LiveView.tsx"));

export function App() {
  return (
    <div class="app">
      <a class="skip-link" href="#main">Skip to content</a>
      <TopBar />
      {view.value === "live" ? <LiveView /> : <ChatView />}
    </div>
  );
}
