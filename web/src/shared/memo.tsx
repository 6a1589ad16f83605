import { Component, h, type FunctionComponent } from "preact";

/** The component is rendered again only if one of its properties is another. */
export function memo<P extends object>(content: FunctionComponent<P>): FunctionComponent<P> {
  class Memo extends Component<P> {
    override shouldComponentUpdate(next: P): boolean {
      const before = this.props as Record<string, unknown>;
      return Object.entries(next).some(([name, value]) => value !== before[name]);
    }
    override render() {
      return h(content, this.props as P);
    }
  }
  return Memo as unknown as FunctionComponent<P>;
}
