import { Bar } from "./Bar.tsx";
import { bytes, percent, rate, whole } from "./format.ts";
import { laneName, type LiveModel } from "./model.ts";
import { Section, TableBox } from "./Section.tsx";

/** The queues between processes. */
export function Lanes({ model }: { model: LiveModel }) {
  const used = model.snapshot!.lanes.filter((lane) => lane.messages || lane.waiting);
  const quiet = model.snapshot!.lanes.length - used.length;
  return (
    <Section id="live-lanes" title="Lanes" aside={quiet ? `${quiet} more have carried nothing` : undefined}>
      <TableBox label="Lanes between processes">
        <table class="live-table">
          <thead>
            <tr>
              <th scope="col">From, to</th>
              <th scope="col">Fill</th>
              <th scope="col" class="number">Messages/s</th>
              <th scope="col" class="number">Full</th>
            </tr>
          </thead>
          <tbody>
            {used.map((lane) => (
              <tr key={laneName(lane)}>
                <th scope="row">{lane.source} → {lane.target}</th>
                <td class="live-bar-cell">
                  <Bar parts={[{ share: lane.waiting / lane.capacity, kind: lane.waiting > lane.capacity / 2 ? "3" : "1" }]} />
                  <span>{percent(lane.waiting / lane.capacity)} of {bytes(lane.capacity)}</span>
                </td>
                <td class="number">{rate(model.rates.get(laneName(lane)) ?? 0)}</td>
                <td class="number">{lane.refusals ? `${whole(lane.refusals)} times` : "never"}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </TableBox>
    </Section>
  );
}
