export function ChatView() {
  return (
    <main id="main" class="chat" tabIndex={-1}>
      <p class="notice">Chat</p>
    </main>
  );
}
