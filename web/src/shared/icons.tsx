/** Icons of 24 by 24 in the colour of the text. They say nothing to a screen reader: the control has a label. */
const PATHS = {
  arrowDown: "M12 5v14M6 13l6 6 6-6",
  arrowUp: "M12 19V5M6 11l6-6 6 6",
  attach: "M21 11.5 12.5 20a5.5 5.5 0 0 1-7.8-7.8l9-9a3.7 3.7 0 0 1 5.2 5.2l-9 9a1.8 1.8 0 0 1-2.6-2.6L15.5 6.5",
  chat: "M21 12a8 8 0 0 1-8 8H4l1.8-3A8 8 0 1 1 21 12Z",
  check: "M5 12.5l4.5 4.5L19 7",
  chevron: "M9 6l6 6-6 6",
  close: "M6 6l12 12M18 6 6 18",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  dark: "M20 14.5A8.5 8.5 0 0 1 9.5 4 8.5 8.5 0 1 0 20 14.5Z",
  edit: "M4 20h4L19 9l-4-4L4 16zM13.5 6.5l4 4",
  export: "M12 15V4M7.5 8.5 12 4l4.5 4.5M5 14v5a1 1 0 0 0 1 1h12a1 1 0 0 0 1-1v-5",
  key: "M14 10a4 4 0 1 0-3.5 4l1.5-1.5h2V10.5zM13.5 10.5 20 4m-3 3 2 2",
  left: "M15 6l-6 6 6 6",
  light: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8ZM12 2v2M12 20v2M2 12h2M20 12h2M5 5l1.4 1.4M17.6 17.6 19 19M5 19l1.4-1.4M17.6 6.400 19 5",
  live: "M3 12h4l3-8 4 16 3-8h4",
  menu: "M4 6h16M4 12h16M4 18h16",
  more: "M5 12h.01M12 12h.01M19 12h.01",
  play: "M7 5l11 7-11 7z",
  plus: "M12 5v14M5 12h14",
  retry: "M20 11a8 8 0 1 0-.5 4.5M20 4v7h-7",
  right: "M9 6l6 6-6 6",
  search: "M11 4a7 7 0 1 0 0 14 7 7 0 0 0 0-14ZM20 20l-4-4",
  settings: "M4 7h9M17 7h3M4 17h3M11 17h9M15 4.5v5M9 14.5v5",
  stop: "M7 7h10v10H7z",
  system: "M4 5h16v11H4zM9 20h6M12 16v4",
  tokens: "M4 20V10M9.5 20V4M15 20v-8M20 20V7",
  tool: "M14.5 6.5a4 4 0 0 1 5-1l-2.5 2.5 1 1 2.5-2.5a4 4 0 0 1-5.5 5L8 18.5a2.1 2.1 0 0 1-3-3l7-7a4 4 0 0 1 2.5-2Z",
  trash: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13M10.5 11v5M13.5 11v5",
} as const;

export type IconName = keyof typeof PATHS;

export function Icon({ name, size = 20 }: { name: IconName; size?: number }) {
  return (
    <svg class="icon" width={size} height={size} viewBox="0 0 24 24" aria-hidden="true" focusable="false">
      <path d={PATHS[name]} />
    </svg>
  );
}
