import type { ComponentProps } from "preact";
import { Icon, type IconName } from "./icons.tsx";

interface Props extends Omit<ComponentProps<"button">, "label" | "icon" | "size"> {
  icon: IconName;
  /** What it does: its name for screen readers, and its tooltip. */
  label: string;
  size?: number;
}

export function IconButton({ icon, label, size, class: more, ...rest }: Props) {
  return (
    <button type="button" class={`icon-button ${more ?? ""}`} aria-label={label} title={label} {...rest}>
      <Icon name={icon} size={size} />
    </button>
  );
}
