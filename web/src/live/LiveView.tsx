/** The engine, live. */
export default function LiveView() {
  return (
    <main id="main" class="live" tabIndex={-1} aria-labelledby="live-title">
      <h1 id="live-title">Live</h1>
    </main>
  );
}
