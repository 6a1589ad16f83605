/** A horizontal bar in parts. It is decoration: the number stands beside it. */
interface Part {
  /** Of the whole bar, 0 to 1. */
  share: number;
  kind: string;
}

export function Bar({ parts }: { parts: Part[] }) {
  let x = 0;
  return (
    <svg class="live-bar" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">
      <rect class="live-bar-ground" width="100" height="8" />
      {parts.map(({ share, kind }) => {
        const width = Math.max(0, Math.min(100 - x, share * 100));
        const rect = <rect key={kind} class={`fill-${kind}`} x={x} width={width} height="8" />;
        x += width;
        return rect;
      })}
    </svg>
  );
}
