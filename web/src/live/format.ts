/** Numbers for people: always few digits, and a unit. */
const count = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });

export const whole = (value: number): string => count.format(Math.round(value));

/** 0.123, 4.56, 78.9, 1,230 */
export const digits = (value: number): string => (value >= 1000 ? whole(value) : short.format(value));

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

export function bytes(value: number): string {
  let unit = 0;
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${digits(value)} ${UNITS[unit]}`;
}

/** 850 ms, 3.2 s, 4 min 5 s, 2 h 10 min, 3 d 4 h */
export function seconds(value: number): string {
  if (value < 0.9995) return `${Math.round(value * 1000)} ms`;
  if (value < 9.95) return `${value.toFixed(1)} s`;
  const all = Math.round(value);
  if (all < 60) return `${all} s`;
  if (all < 3600) return `${Math.floor(all / 60)} min ${all % 60} s`;
  if (all < 86400) return `${Math.floor(all / 3600)} h ${Math.floor((all % 3600) / 60)} min`;
  return `${Math.floor(all / 86400)} d ${Math.floor((all % 86400) / 3600)} h`;
}

/** 0 %, < 0.1 %, 0.8 %, 43 % */
export function percent(share: number): string {
  const value = share * 100;
  if (value <= 0) return "0 %";
  if (value < 0.1) return "< 0.1 %";
  return `${value < 0.95 ? value.toFixed(1) : Math.round(value)} %`;
}

/** A rate: 0, 0.9, 12 */
export const rate = (value: number): string => (value < 9.95 ? String(Number(value.toFixed(1))) : whole(value));

export function clock(at: number): string {
  return new Date(at * 1000).toLocaleTimeString("en-GB");
}
