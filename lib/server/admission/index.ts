export { checkSlaOptions, createSlaAdmission, type SlaAdmission, type SlaOptions, type SlaSnapshot } from './sla_admission'
