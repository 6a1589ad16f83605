// Builds the page: `node build.mjs [folder]`. The output is the same for the same sources and package-lock.json, byte for byte.
import { build } from "esbuild";
import { mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { basename, dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const to = resolve(process.argv[2] ?? join(here, "../lightllm_mp/page"));

const options = {
  absWorkingDir: here,
  bundle: true,
  minify: true,
  target: ["es2022", "chrome123", "firefox121", "safari17.5"],
  charset: "utf8",
  legalComments: "none",
  outdir: join(to, "assets"),
  entryNames: "[name]-[hash]",
  chunkNames: "[name]-[hash]",
  assetNames: "[name]-[hash]",
  loader: { ".svg": "copy" },
  jsx: "automatic",
  jsxImportSource: "preact",
  define: { "process.env.NODE_ENV": '"production"' },
  metafile: true,
  logLevel: "warning",
};

rmSync(to, { recursive: true, force: true });
mkdirSync(join(to, "assets"), { recursive: true });
const page = await build({
  ...options,
  entryPoints: ["src/main.tsx", "src/styles/page.css", "src/icon.svg"],
  format: "esm",
  splitting: true,
});
const early = await build({ ...options, entryPoints: ["src/early.ts"], format: "iife" });

const outputs = { ...page.metafile.outputs, ...early.metafile.outputs };
writeFileSync(join(to, "index.html"), indexPage(readFileSync(join(here, "src/index.html"), "utf8")));
writeFileSync(join(to, "LICENSES.txt"), licenses());

/** The output that was made from an entry point, relative to the page. */
function made(entry) {
  const [path] = Object.entries(outputs).find(([, output]) => output.entryPoint === entry || entry in output.inputs);
  return `assets/${basename(path)}`;
}

/** What `entry` imports at once is fetched beside it, not after it. */
function preloads(entry) {
  const output = Object.values(outputs).find((one) => one.entryPoint === entry);
  const paths = output.imports.filter((one) => one.kind === "import-statement").map((one) => one.path);
  return paths.map((path) => `<link rel="modulepreload" href="assets/${basename(path)}">\n`).join("");
}

function indexPage(template) {
  return template
    .replace(/\{\{preload (.+?)\}\}\n/g, (_, entry) => preloads(entry))
    .replace(/\{\{(.+?)\}\}/g, (_, entry) => made(entry));
}

/** The licences of all packages of which there is something in the output. */
function licenses() {
  const inputs = Object.values(outputs).flatMap((output) => Object.keys(output.inputs));
  const packages = new Set(inputs.flatMap((path) => path.match(/^node_modules\/(@[^/]+\/[^/]+|[^/]+)/)?.[1] ?? []));
  return [...packages].sort().map(license).join(`\n${"=".repeat(80)}\n\n`);
}

function license(name) {
  const folder = join(here, "node_modules", name);
  const { version, license } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
  const file = readdirSync(folder).sort().find((one) => /^(licen[cs]e|copying)/i.test(one));
  const text = file ? readFileSync(join(folder, file), "utf8").replaceAll("\r\n", "\n").trim() : "";
  return `${name} ${version} (${license})\n\n${text}\n`;
}
