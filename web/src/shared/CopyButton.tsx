import { useEffect, useState } from "preact/hooks";
import { copyText } from "./clipboard.ts";
import { IconButton } from "./IconButton.tsx";

/** Copies what `text` returns, and shows for a moment that it did. */
export function CopyButton({ label, text }: { label: string; text: () => string }) {
  const [copied, setCopied] = useState(false);
  useEffect(() => {
    if (!copied) return;
    const timer = setTimeout(() => setCopied(false), 1500);
    return () => clearTimeout(timer);
  }, [copied]);
  return <IconButton icon={copied ? "check" : "copy"} size={17} label={label} onClick={() => void copyText(text()).then(() => setCopied(true))} />;
}
