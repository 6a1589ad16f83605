import { render } from "preact";
import { App } from "./App.tsx";
import { keepServerInfo } from "./shared/server_info.ts";

render(<App />, document.getElementById("app")!);
keepServerInfo();
