import { Component, type ComponentChildren } from "preact";

/** If something inside cannot be shown, the rest of the page still is. */
export class Guarded extends Component<{ what: string; children: ComponentChildren }, { failed: boolean }> {
  override state = { failed: false };

  static override getDerivedStateFromError() {
    return { failed: true };
  }

  override componentDidCatch(error: unknown) {
    console.error(error);
  }

  override render() {
    return this.state.failed ? <p class="message-note" role="alert">{this.props.what} cannot be shown.</p> : this.props.children;
  }
}
