// Bundles each test with what it tests, and runs them with node's own test runner: `npm test`.
import { build } from "esbuild";
import { spawnSync } from "node:child_process";
import { mkdirSync, readdirSync, rmSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const to = join(here, "../node_modules/.tests");
rmSync(to, { recursive: true, force: true });
mkdirSync(to, { recursive: true });
await build({
  absWorkingDir: here,
  entryPoints: readdirSync(here).filter((name) => /\.test\.tsx?$/.test(name)),
  outdir: to,
  outExtension: { ".js": ".mjs" },
  bundle: true,
  splitting: true,
  format: "esm",
  platform: "node",
  target: "node20",
  jsx: "automatic",
  jsxImportSource: "preact",
  external: ["jsdom", "fake-indexeddb"],
  logLevel: "warning",
});
const files = readdirSync(to).filter((name) => name.endsWith(".test.mjs")).map((name) => join(to, name));
const { status } = spawnSync(process.execPath, ["--test", "--test-timeout=120000", ...files], { stdio: "inherit" });
process.exit(status ?? 1);
